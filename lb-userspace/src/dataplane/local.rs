//! The hooks at sockets of this host, and the connections they have made.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
    programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr, ProgramError, ProgramType, links::FdLink},
    sys::{BpfHelper, is_helper_supported},
};
use lb_common::abi::{BackendId, Local, MAX_LOCALS, names};

use super::{
    ApplyError, Dataplane, LoadError, PinError,
    links::{Owner, Place},
    loads::{Loads, OWN},
    maps::{reading, taken},
    program,
};

/// In the order in which they are attached: whoever is sent to a backend is shown the virtual server from the first moment.
const HOOKS: [&str; 4] = [names::GETPEERNAME4, names::GETPEERNAME6, names::CONNECT4, names::CONNECT6];

/// A hook could not be put on a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error(
        "the cgroup does not take program {program}: {source}. Another tool may hold the hook for itself alone (bpftool cgroup tree shows who); \
         dataplane.cgroup = \"off\" does without local clients."
    )]
    Program { program: &'static str, source: ProgramError },
    #[error("opening the cgroup: {0}")]
    Cgroup(io::Error),
    #[error(transparent)]
    Pins(#[from] PinError),
}

/// The cgroup that has the hooks.
#[derive(Debug)]
pub(super) struct Hooked {
    cgroup: File,
    inode: u64,
    /// Whether it still has a former daemon's.
    former: bool,
    /// Links that are pinned nowhere.
    _links: Vec<FdLink>,
}

impl Hooked {
    pub(super) fn owner(&self) -> Owner {
        Owner::Cgroup(self.inode)
    }

    pub(super) fn is_former(&self) -> bool {
        self.former
    }
}

/// Whether a hook can tell a caller that the connection was refused. Kernels before 6.1 say "operation not permitted".
pub(super) fn chooses_errors() -> bool {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval).unwrap_or(false)
}

/// Loads the hooks; nothing is attached yet.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let failed = |name| move |source| LoadError::Program { name, source };
    for name in HOOKS {
        program::<CgroupSockAddr>(ebpf, name).load().map_err(failed(name))?;
    }
    program::<CgroupSock>(ebpf, names::SOCK_RELEASE).load().map_err(failed(names::SOCK_RELEASE))
}

/// Connections of this host's sockets, as the hooks have noted them.
#[derive(Debug)]
pub struct Locals {
    notes: HashMap<MapData, u64, Local>,
    loads: Loads,
}

impl Dataplane {
    /// Puts the hooks on a cgroup: they act on every socket that is made in it from then on or was before. Where a former daemon has left
    /// its hooks, they go on until [`Self::take_over`].
    pub fn attach_hooks(&mut self, cgroup: impl AsFd) -> Result<(), HookError> {
        let cgroup = File::from(cgroup.as_fd().try_clone_to_owned().map_err(HookError::Cgroup)?);
        let inode = cgroup.metadata().map_err(HookError::Cgroup)?.ino();
        let owner = Owner::Cgroup(inode);
        let former = self.pins.as_ref().is_some_and(|pins| pins.links().owners().contains(&owner));
        let links = if former { Vec::new() } else { self.hook(&cgroup, owner)? };
        self.hooked = Some(Hooked { cgroup, inode, former, _links: links });
        Ok(())
    }

    /// Puts these hooks in the place of a former daemon's.
    pub(super) fn take_over_hooks(&mut self) -> Result<(), HookError> {
        if let Some(mut hooked) = self.hooked.take_if(|hooked| hooked.former) {
            hooked._links = self.hook(&hooked.cgroup, hooked.owner())?;
            hooked.former = false;
            self.hooked = Some(hooked);
        }
        Ok(())
    }

    /// Attaches each hook, or updates the link that there is. Gives the links that could be pinned nowhere.
    fn hook(&mut self, cgroup: &File, owner: Owner) -> Result<Vec<FdLink>, HookError> {
        let mut links = Vec::new();
        for name in [names::SOCK_RELEASE].into_iter().chain(HOOKS) {
            let failed = |source| HookError::Program { program: name, source };
            let pinned = self.pins.as_ref().map(|pins| pins.links());
            let fd = self.hook_fd(name).map_err(failed)?;
            if pinned.as_ref().is_some_and(|pinned| pinned.update(owner, Place::Hook(name), fd).is_ok()) {
                continue;
            }
            let link = self.hook_link(name, cgroup).map_err(failed)?;
            match pinned {
                Some(pinned) => pinned.add(owner, Place::Hook(name), link)?,
                None => links.push(link),
            }
        }
        Ok(links)
    }

    fn hook_fd(&mut self, name: &'static str) -> Result<BorrowedFd<'_>, ProgramError> {
        let fd = if name == names::SOCK_RELEASE {
            program::<CgroupSock>(&mut self.ebpf, name).fd()?
        } else {
            program::<CgroupSockAddr>(&mut self.ebpf, name).fd()?
        };
        Ok(fd.as_fd())
    }

    fn hook_link(&mut self, name: &'static str, cgroup: &File) -> Result<FdLink, ProgramError> {
        // Links share a cgroup with other tools' programs, whatever the mode says.
        let mode = CgroupAttachMode::Single;
        let link = if name == names::SOCK_RELEASE {
            let hook: &mut CgroupSock = program(&mut self.ebpf, name);
            hook.attach(cgroup, mode).and_then(|id| hook.take_link(id))?.try_into()
        } else {
            let hook: &mut CgroupSockAddr = program(&mut self.ebpf, name);
            hook.attach(cgroup, mode).and_then(|id| hook.take_link(id))?.try_into()
        };
        link.map_err(|_| ProgramError::NotAttached)
    }

    /// Takes the table of local connections; there is one.
    pub fn locals(&mut self) -> Result<Locals, LoadError> {
        Ok(Locals { notes: taken(&mut self.ebpf, names::LOCALS)?, loads: self.maps.loads.clone() })
    }
}

impl Locals {
    /// All connections, by the cookie of their socket. Corrects what the programs count for each backend.
    pub fn all(&self) -> Result<BTreeMap<u64, Local>, ApplyError> {
        let counted = self.loads.counts(OWN);
        // A table that changes under the walk can send it back to its start (kernel: `htab_map_get_next_key`), so steps are counted.
        let walk = self.notes.iter().take(2 * MAX_LOCALS);
        let all: BTreeMap<u64, Local> =
            walk.collect::<Result<_, MapError>>().map_err(reading("the local connections"))?;
        let mut open: BTreeMap<BackendId, u64> = BTreeMap::new();
        all.values().for_each(|local| *open.entry(local.backend).or_default() += 1);
        self.loads.correct(OWN, &counted, &open);
        Ok(all)
    }
}
