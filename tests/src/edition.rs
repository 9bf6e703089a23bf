//! Another edition of the product, as a later version would be: the same, but for one constant in what it loads into the kernel.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::programs::{
    links::{FdLink, PinnedLink},
    loaded_programs,
};

use crate::{lab::Host, xvip::binary};

/// Two halves of an instruction that loads the first eight bytes of an ARP request, to compare them with those of a frame. Which register
/// they go to is the byte before. Where no VIP has a lease, a request goes the same way as everything else.
const CONSTANT: [u8; 14] = [0, 0, 0, 1, 8, 0, 0, 0, 0, 0, 6, 4, 0, 1];
const LOAD: u8 = 0x18;

/// Makes one in a directory.
pub fn another(directory: &Path) -> Result<PathBuf> {
    let mut bytes = fs::read(binary()?)?;
    let place =
        place(&bytes).context("the constant is not in the program: is an ARP request known by something else now?")?;
    bytes[place] ^= 0x80;
    let path = directory.join("xvip-another");
    fs::write(&path, &bytes)?;
    fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Where the constant begins.
fn place(bytes: &[u8]) -> Option<usize> {
    let is_it = |window: &[u8]| window[0] == LOAD && window[2..] == CONSTANT;
    Some(bytes.windows(2 + CONSTANT.len()).position(is_it)? + 4)
}

/// What an interface has: the link by which it has a program, and which program that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    pub link: u32,
    pub program: u32,
    /// The kernel's hash of its instructions.
    pub tag: u64,
}

impl Attached {
    /// The XDP program of the first interface that this host's xvip has.
    pub fn of(host: &Host) -> Result<Self> {
        let links = host.bpffs()?.join("links");
        let names = fs::read_dir(&links)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let name = names.filter(|name| name.ends_with("_xdp_native")).min().context("no link of XDP is pinned")?;
        let link = FdLink::from(PinnedLink::from_pin(links.join(name))?).info()?;
        let mut programs = loaded_programs().filter_map(Result::ok);
        let program = programs.find(|program| program.id() == link.program_id()).context("the link has no program")?;
        Ok(Self { link: link.id(), program: program.id(), tag: program.tag() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constant_is_found_in_whatever_register_it_goes_to() {
        for register in [2, 7] {
            let bytes = [&[0, LOAD, 9, 0, LOAD, register][..], &CONSTANT, &[5]].concat();
            assert_eq!(place(&bytes), Some(8));
        }
        assert_eq!(place(&CONSTANT), None);
    }
}
