//! Links in a BPF filesystem: what keeps a program on its interface after the daemon that put it there is gone.
//!
//! Each is named by its interface's number, which a new interface of the same name does not share, and by its place there. (Names of
//! interfaces may have dots, which a BPF filesystem does not take.)

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use aya::programs::links::{FdLink, PinnedLink};
use aya_obj::generated::{bpf_attr, bpf_cmd};

use super::{Mode, PinError};

/// Where on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Xdp(Mode),
    Ingress,
    Egress,
    /// No link, but a note (a directory) that the interface's clsact qdisc was added for it.
    Qdisc,
}

impl Place {
    const ALL: [Self; 5] =
        [Self::Xdp(Mode::Native), Self::Xdp(Mode::Generic), Self::Ingress, Self::Egress, Self::Qdisc];

    const fn name(self) -> &'static str {
        match self {
            Self::Xdp(Mode::Native) => "xdp_native",
            Self::Xdp(Mode::Generic) => "xdp_generic",
            Self::Ingress => "tc_ingress",
            Self::Egress => "tc_egress",
            Self::Qdisc => "clsact",
        }
    }
}

/// The directory of an instance's links.
#[derive(Clone, Debug)]
pub(super) struct Links(PathBuf);

impl Links {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    fn path(&self, interface: u32, place: Place) -> PathBuf {
        self.0.join(format!("{interface}_{}", place.name()))
    }

    pub(super) fn add(&self, interface: u32, place: Place, link: FdLink) -> Result<(), PinError> {
        let path = self.path(interface, place);
        let failed = |error: aya::pin::PinError| PinError::new(&path, io::Error::other(error));
        fs::create_dir_all(&self.0).map_err(|error| PinError::new(&self.0, error))?;
        // The pin holds the link from here on.
        link.pin(&path).map(drop).map_err(failed)
    }

    /// The link at a place, if there is one.
    pub(super) fn find(&self, interface: u32, place: Place) -> Option<FdLink> {
        PinnedLink::from_pin(self.path(interface, place)).ok().map(FdLink::from)
    }

    /// Notes that the interface's qdisc is xvip's.
    pub(super) fn note_qdisc(&self, interface: u32) -> Result<(), PinError> {
        let path = self.path(interface, Place::Qdisc);
        fs::create_dir_all(&path).map_err(|error| PinError::new(&path, error))
    }

    /// The interfaces that have any, by number.
    pub(super) fn interfaces(&self) -> BTreeSet<u32> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.split_once('_')?.0.parse().ok();
        entries.filter_map(number).collect()
    }

    /// Those among them whose qdisc is xvip's.
    pub(super) fn qdiscs(&self) -> BTreeSet<u32> {
        self.interfaces().into_iter().filter(|interface| self.path(*interface, Place::Qdisc).is_dir()).collect()
    }

    pub(super) fn remove_all(&self) -> Result<(), PinError> {
        self.interfaces().into_iter().try_for_each(|interface| self.remove(interface))
    }

    /// Takes the programs off an interface, and the notes about it away.
    pub(super) fn remove(&self, interface: u32) -> Result<(), PinError> {
        for place in Place::ALL {
            let path = self.path(interface, place);
            let removed = match place {
                Place::Qdisc => fs::remove_dir(&path),
                _ => cut(&path).and_then(|()| fs::remove_file(&path)),
            };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(PinError::new(&path, error)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Detaches the program of a pinned link at once. Without this, it would stay until the kernel comes round to freeing the link.
fn cut(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut get = attributes();
    get.__bindgen_anon_4.pathname = name.as_ptr() as u64;
    let link = bpf(bpf_cmd::BPF_OBJ_GET, &get)?;
    // SAFETY: a descriptor that the kernel has just made for this call.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let mut detach = attributes();
    detach.link_detach.link_fd = link.as_raw_fd() as u32;
    match bpf(bpf_cmd::BPF_LINK_DETACH, &detach) {
        // Its interface is gone, and it with it.
        Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => Err(error),
        _ => Ok(()),
    }
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
    fn interfaces_are_read_from_names() {
        let directory = tempfile::tempdir().unwrap();
        let links = Links::new(directory.path().join("links"));
        assert_eq!(links.interfaces(), BTreeSet::new());
        links.note_qdisc(12).unwrap();
        fs::write(links.path(7, Place::Xdp(Mode::Generic)), "").unwrap();
        fs::write(links.0.join("stranger"), "").unwrap();
        assert_eq!(links.interfaces(), BTreeSet::from([7, 12]));
        assert_eq!(links.qdiscs(), BTreeSet::from([12]));
        links.remove(12).unwrap();
        assert_eq!(links.interfaces(), BTreeSet::from([7]));
        links.remove(12).unwrap();
    }
}
