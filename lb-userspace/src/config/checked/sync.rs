//! The nodes that share connections: each spoken with at one address, of one family.

use super::{Checker, at};
use crate::config::{
    files::{Content, FileUse},
    model, raw,
};

impl Checker<'_> {
    /// `None` only after a mistake.
    pub(super) fn sync(&mut self, raw: &raw::Sync) -> Option<model::Sync> {
        if let Some((path, at)) = at(&raw.key_file) {
            self.files.push(FileUse { path: path.0.clone(), at, content: Content::SharedKey });
        }
        let peers = raw.peers.value()?;
        self.refuse_duplicates(peers.iter().map(|peer| (peer.get_ref().0, peer.span())), |peer, line| {
            (format!("{peer} is given twice (first in line {line})"), "leave out one of the two".to_owned())
        });
        let listen = raw.listen.value()?.0;
        for peer in peers {
            let (address, at) = (peer.get_ref().0, peer.span());
            if address.ip() == listen.ip() {
                let help = "name the other nodes only, each by what it has in its own `listen`";
                self.mistakes.add(&at, format!("{address} is this node itself, by its `listen`"), help);
            }
            if address.is_ipv4() != listen.is_ipv4() {
                let help = "give the addresses of all nodes in one family; connections of both go that way";
                self.mistakes.add(
                    &at,
                    format!("{address} cannot be reached from {listen}: they differ in family"),
                    help,
                );
            }
        }
        let key_file = raw.key_file.value()?.0.clone();
        Some(model::Sync { listen, peers: peers.iter().map(|peer| peer.get_ref().0).collect(), key_file })
    }
}
