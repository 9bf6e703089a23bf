//! Links in a BPF filesystem: what keeps a program on its interface after the daemon that put it there is gone.
//!
//! Each is named by its interface's number, which a new interface of the same name does not share, and by its place there. (Names of
//! interfaces may have dots, which a BPF filesystem does not take.)

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use aya::programs::links::{FdLink, PinnedLink};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_link_info};

use super::{Mode, PinError};

/// What a program is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    /// By number.
    Interface(u32),
    /// By the number of its directory.
    Cgroup(u64),
}

impl Owner {
    fn prefix(self) -> String {
        match self {
            Self::Interface(index) => format!("{index}_"),
            Self::Cgroup(inode) => format!("cgroup{inode}_"),
        }
    }

    /// Reads the name of a pin.
    fn of(name: &str) -> Option<Self> {
        let number = name.split_once('_')?.0;
        match number.strip_prefix("cgroup") {
            Some(inode) => inode.parse().ok().map(Self::Cgroup),
            None => number.parse().ok().map(Self::Interface),
        }
    }
}

/// Where it is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Xdp(Mode),
    Ingress,
    Egress,
    /// A hook of a cgroup, by the name of its program.
    Hook(&'static str),
}

impl Place {
    const fn name(self) -> &'static str {
        match self {
            Self::Xdp(Mode::Native) => "xdp_native",
            Self::Xdp(Mode::Generic) => "xdp_generic",
            Self::Ingress => "tc_ingress",
            Self::Egress => "tc_egress",
            Self::Hook(program) => program,
        }
    }
}

/// A directory in place of a link: a note that the interface's clsact qdisc was added for a program that has no link.
const QDISC: &str = "clsact";

/// The directory of an instance's links.
#[derive(Clone, Debug)]
pub(super) struct Links(PathBuf);

impl Links {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    fn path(&self, owner: Owner, place: &str) -> PathBuf {
        self.0.join(owner.prefix() + place)
    }

    pub(super) fn add(&self, owner: Owner, place: Place, link: FdLink) -> Result<(), PinError> {
        let path = self.path(owner, place.name());
        let failed = |error: aya::pin::PinError| PinError::new(&path, io::Error::other(error));
        fs::create_dir_all(&self.0).map_err(|error| PinError::new(&self.0, error))?;
        // One that could not be updated, since somebody has cut it.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(PinError::new(&path, error)),
            _ => {}
        }
        // The pin holds the link from here on.
        link.pin(&path).map(drop).map_err(failed)
    }

    /// The id of the program at a place, if there is a link.
    pub(super) fn program(&self, owner: Owner, place: Place) -> Option<u32> {
        let link = PinnedLink::from_pin(self.path(owner, place.name())).ok()?;
        FdLink::from(link).info().ok().map(|info| info.program_id())
    }

    /// Whether the link at a place of an interface is there and has not been cut. The kernel tells nobody of either.
    pub(super) fn holds(&self, interface: u32, place: Place) -> io::Result<bool> {
        let path = self.path(Owner::Interface(interface), place.name());
        match open(&path) {
            Ok(link) => Ok(interface_of(&link)? == interface),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Puts a program in the place of the one that is at a place now: no packet finds neither.
    pub(super) fn update(&self, owner: Owner, place: Place, program: BorrowedFd<'_>) -> io::Result<()> {
        let link = open(&self.path(owner, place.name()))?;
        let mut update = attributes();
        update.link_update.link_fd = link.as_raw_fd() as u32;
        update.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
        bpf(bpf_cmd::BPF_LINK_UPDATE, &update).map(drop)
    }

    /// Notes that the interface's qdisc is xvip's.
    pub(super) fn note_qdisc(&self, interface: u32) -> Result<(), PinError> {
        let path = self.path(Owner::Interface(interface), QDISC);
        fs::create_dir_all(&path).map_err(|error| PinError::new(&path, error))
    }

    /// What has any.
    pub(super) fn owners(&self) -> BTreeSet<Owner> {
        self.entries().iter().filter_map(|path| Owner::of(path.file_name()?.to_str()?)).collect()
    }

    pub(super) fn interfaces(&self) -> BTreeSet<u32> {
        let number = |owner| match owner {
            Owner::Interface(index) => Some(index),
            Owner::Cgroup(_) => None,
        };
        self.owners().into_iter().filter_map(number).collect()
    }

    /// Interfaces whose qdisc is xvip's.
    pub(super) fn qdiscs(&self) -> BTreeSet<u32> {
        let has = |index: &u32| self.path(Owner::Interface(*index), QDISC).is_dir();
        self.interfaces().into_iter().filter(has).collect()
    }

    pub(super) fn remove_all(&self) -> Result<(), PinError> {
        self.owners().into_iter().try_for_each(|owner| self.remove(owner))
    }

    /// Takes the programs off, and the notes away.
    pub(super) fn remove(&self, owner: Owner) -> Result<(), PinError> {
        let is_its = |path: &&PathBuf| path.file_name().and_then(|name| Owner::of(name.to_str()?)) == Some(owner);
        for path in self.entries().iter().filter(is_its) {
            let removed =
                if path.is_dir() { fs::remove_dir(path) } else { cut(path).and_then(|()| fs::remove_file(path)) };
            removed.map_err(|error| PinError::new(path, error))?;
        }
        Ok(())
    }

    fn entries(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }
}

/// Detaches the program of a pinned link at once. Without this, it would stay until the kernel comes round to freeing the link.
fn cut(path: &Path) -> io::Result<()> {
    let link = open(path)?;
    let mut detach = attributes();
    detach.link_detach.link_fd = link.as_raw_fd() as u32;
    match bpf(bpf_cmd::BPF_LINK_DETACH, &detach) {
        // Its interface is gone, and it with it.
        Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => Err(error),
        _ => Ok(()),
    }
}

/// The interface of a link of XDP or TCX: 0 if it has been cut.
fn interface_of(link: &OwnedFd) -> io::Result<u32> {
    // SAFETY: integers and unions of integers only, for which zero is a value.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let mut get = attributes();
    get.info.bpf_fd = link.as_raw_fd() as u32;
    get.info.info_len = size_of::<bpf_link_info>() as u32;
    get.info.info = &raw mut info as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &get)?;
    // SAFETY: both kinds have the interface first, and any bits are a number.
    Ok(unsafe { info.__bindgen_anon_1.xdp.ifindex })
}

/// Opens what is pinned.
fn open(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut get = attributes();
    get.__bindgen_anon_4.pathname = name.as_ptr() as u64;
    let object = bpf(bpf_cmd::BPF_OBJ_GET, &get)?;
    // SAFETY: a descriptor that the kernel has just made for this call.
    Ok(unsafe { OwnedFd::from_raw_fd(object) })
}

fn attributes() -> bpf_attr {
    // SAFETY: integers and unions of integers only, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn bpf(command: bpf_cmd, attributes: &bpf_attr) -> io::Result<i32> {
    // SAFETY: the kernel reads no more than the size it is given, and what the attributes point to outlives the call.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, std::ptr::from_ref(attributes), size_of::<bpf_attr>())
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as i32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_read_from_names() {
        let directory = tempfile::tempdir().unwrap();
        let links = Links::new(directory.path().join("links"));
        assert_eq!(links.owners(), BTreeSet::new());
        links.note_qdisc(12).unwrap();
        for name in ["7_xdp_generic", "cgroup4711_connect4", "stranger", "x_tc_egress"] {
            fs::write(links.0.join(name), "").unwrap();
        }
        let owners = [Owner::Interface(7), Owner::Interface(12), Owner::Cgroup(4711)];
        assert_eq!(links.owners(), BTreeSet::from(owners));
        assert_eq!(links.interfaces(), BTreeSet::from([7, 12]));
        assert_eq!(links.qdiscs(), BTreeSet::from([12]));
        for _ in 0..2 {
            links.remove(Owner::Interface(12)).unwrap();
            assert_eq!(links.interfaces(), BTreeSet::from([7]));
        }
    }

    #[test]
    fn names_lead_back_to_their_owners() {
        let links = Links::new(PathBuf::new());
        for owner in [Owner::Interface(1), Owner::Interface(u32::MAX), Owner::Cgroup(u64::MAX)] {
            let path = links.path(owner, Place::Xdp(Mode::Native).name());
            assert_eq!(Owner::of(path.to_str().unwrap()), Some(owner));
        }
    }
}
