//! Putting the programs on an interface.

use aya::{
    programs::{
        ProgramError, TcAttachType, XdpMode as Hook, loaded_programs,
        tc::{TcError, qdisc_add_clsact},
        xdp::XdpError,
    },
    sys::SyscallError,
};
use lb_common::abi::names;

use super::{Dataplane, classifier, xdp};

/// Where in the receive path the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// After the kernel has made a socket buffer: slower, and possible everywhere.
    Generic,
}

/// The programs could not be put on an interface.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error(
        "interface {interface} already has an XDP program: {holder}. An interface takes one only. Remove it with whatever put it there \
         (by hand: ip link set dev {interface} xdp off), or set dataplane.interfaces to another interface."
    )]
    Taken { interface: String, holder: String },
    #[error(
        "interface {interface} does not take the XDP program in {mode} mode: {reason}. Set dataplane.mode = \"generic\" (slower) or \"auto\", or use \
         an interface whose driver has native XDP; with jumbo frames, an MTU of at most about 3500 helps many drivers."
    )]
    Xdp { interface: String, mode: &'static str, reason: String },
    #[error(
        "interface {interface} does not take program {program}: {source}. Another tool may have a qdisc there; tc qdisc show dev {interface} tells."
    )]
    Classifier { interface: String, program: &'static str, source: ProgramError },
}

impl Dataplane {
    /// Puts all programs on an interface. `holder` is the id of an XDP program that is there already, if one is.
    ///
    /// # Errors
    /// With nothing attached to that interface.
    pub fn attach(
        &mut self,
        interface: &str,
        index: u32,
        wanted: Option<Mode>,
        holder: Option<u32>,
    ) -> Result<Mode, AttachError> {
        if let Some(id) = holder {
            return Err(AttachError::Taken { interface: interface.to_owned(), holder: describe(id) });
        }
        for (program, point) in [(names::TC_INGRESS, TcAttachType::Ingress), (names::TC_EGRESS, TcAttachType::Egress)] {
            self.attach_classifier(interface, program, point)?;
        }
        self.attach_xdp(interface, index, wanted)
    }

    fn attach_xdp(&mut self, interface: &str, index: u32, wanted: Option<Mode>) -> Result<Mode, AttachError> {
        let program = xdp(&mut self.ebpf);
        let refused = |mode, error: &ProgramError| {
            let interface = interface.to_owned();
            match busy(error) {
                true => AttachError::Taken { interface, holder: "the kernel does not say which".to_owned() },
                false => AttachError::Xdp { interface, mode, reason: cause(error) },
            }
        };
        if wanted != Some(Mode::Generic) {
            match program.attach_to_if_index(index, Hook::Driver) {
                Ok(_) => return Ok(Mode::Native),
                Err(error) if wanted == Some(Mode::Native) || busy(&error) => return Err(refused("native", &error)),
                Err(error) => log::warn!(
                    "interface {interface} has no native XDP ({}); using generic mode, which is several times slower",
                    cause(&error)
                ),
            }
        }
        program.attach_to_if_index(index, Hook::Skb).map_err(|error| refused("generic", &error))?;
        Ok(Mode::Generic)
    }

    fn attach_classifier(
        &mut self,
        interface: &str,
        program: &'static str,
        point: TcAttachType,
    ) -> Result<(), AttachError> {
        let failed = |source| AttachError::Classifier { interface: interface.to_owned(), program, source };
        if !self.has_tcx {
            match qdisc_add_clsact(interface) {
                Err(TcError::AlreadyAttached) | Ok(()) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        classifier(&mut self.ebpf, program).attach(interface, point).map(drop).map_err(failed)
    }
}

/// Name and id of a loaded program, as `bpftool prog show` has them.
fn describe(id: u32) -> String {
    let found = loaded_programs().flatten().find(|program| program.id() == id);
    let name = found.as_ref().and_then(|program| program.name_as_str()).unwrap_or("(without a name)").to_owned();
    format!("\"{name}\", program id {id}")
}

/// Whether the hook is held by somebody else.
fn busy(error: &ProgramError) -> bool {
    errno(error).is_some_and(|errno| errno == libc::EBUSY || errno == libc::EEXIST)
}

fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(SyscallError { io_error, .. }) => io_error.raw_os_error(),
        _ => None,
    }
}

/// The innermost reason, which says most.
fn cause(error: &ProgramError) -> String {
    let mut inner: &dyn std::error::Error = match error {
        ProgramError::XdpError(XdpError::NetlinkError(error)) => error,
        other => other,
    };
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
