//! The hooks at sockets of this host, and the connections they have made.

use std::{collections::BTreeMap, os::fd::AsFd};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
    programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr, ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};
use lb_common::abi::{Local, MAX_LOCALS, names};

use super::{
    ApplyError, Dataplane, LoadError,
    maps::{reading, taken},
    program,
};

/// In the order in which they are attached: whoever is sent to a backend is shown the virtual server from the first moment.
const HOOKS: [&str; 4] = [names::GETPEERNAME4, names::GETPEERNAME6, names::CONNECT4, names::CONNECT6];

/// A hook could not be put on a cgroup.
#[derive(Debug, thiserror::Error)]
#[error(
    "the cgroup does not take program {program}: {source}. Another tool may hold the hook for itself alone (bpftool cgroup tree shows who); \
     dataplane.cgroup = \"off\" does without local clients."
)]
pub struct HookError {
    program: &'static str,
    source: ProgramError,
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
pub struct Locals(HashMap<MapData, u64, Local>);

impl Dataplane {
    /// Puts the hooks on a cgroup: they act on every socket that is made in it from then on or was before. They end with this.
    pub fn attach_hooks(&mut self, cgroup: impl AsFd) -> Result<(), HookError> {
        let cgroup = cgroup.as_fd();
        // Links share a cgroup with other tools' programs, whatever the mode says.
        let mode = CgroupAttachMode::Single;
        let failed = |program| move |source| HookError { program, source };
        let release: &mut CgroupSock = program(&mut self.ebpf, names::SOCK_RELEASE);
        release.attach(cgroup, mode).map_err(failed(names::SOCK_RELEASE))?;
        for name in HOOKS {
            let hook: &mut CgroupSockAddr = program(&mut self.ebpf, name);
            hook.attach(cgroup, mode).map_err(failed(name))?;
        }
        Ok(())
    }

    /// Takes the table of local connections; there is one.
    pub fn locals(&mut self) -> Result<Locals, LoadError> {
        taken(&mut self.ebpf, names::LOCALS).map(Locals)
    }
}

impl Locals {
    /// All connections, by the cookie of their socket.
    pub fn all(&self) -> Result<BTreeMap<u64, Local>, ApplyError> {
        // A table that changes under the walk can send it back to its start (kernel: `htab_map_get_next_key`), so steps are counted.
        let walk = self.0.iter().take(2 * MAX_LOCALS);
        walk.collect::<Result<_, MapError>>().map_err(reading("the local connections"))
    }
}
