//! What the kernel side tells of backends that leave clients without an answer.

use std::{collections::BTreeSet, fmt, io};

use aya::maps::{MapData, MapError, RingBuf};
use lb_common::abi::{BackendId, names};
use tokio::io::{Interest, unix::AsyncFd};

use super::{Dataplane, LoadError};

/// Backends that have left a SYN unanswered or refused it, as that happens; each at most a few times a second.
pub struct Suspicions(AsyncFd<RingBuf<MapData>>);

impl fmt::Debug for Suspicions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Suspicions")
    }
}

impl Dataplane {
    /// Takes the suspicions, within a runtime. They can be taken once.
    pub fn suspicions(&mut self) -> Result<Suspicions, LoadError> {
        let failed = |source| LoadError::Map { name: names::SUSPICIONS, source };
        let map = self.ebpf.take_map(names::SUSPICIONS).ok_or_else(|| failed(MapError::KeyNotFound))?;
        let ring = map.try_into().map_err(failed)?;
        // SAFETY: the ring owns its file descriptor for as long as it lives, and stays inside.
        let readable = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        Ok(Suspicions(readable.map_err(|error| failed(MapError::IoError(error.into())))?))
    }
}

impl Suspicions {
    /// Those since the last time, when there are any.
    ///
    /// Cancel-safe.
    pub async fn next(&mut self) -> io::Result<BTreeSet<BackendId>> {
        let mut ready = self.0.readable_mut().await?;
        let mut told = BTreeSet::new();
        while let Some(item) = ready.get_inner_mut().next() {
            told.extend(item.first_chunk().map(|id| BackendId(u32::from_ne_bytes(*id))));
        }
        ready.clear_ready();
        Ok(told)
    }
}
