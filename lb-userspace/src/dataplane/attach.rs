//! Putting the programs on an interface, and in the place of those that a former daemon has put there.

use std::{io, os::fd::AsFd as _};

use aya::{
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode as Hook,
        links::FdLink,
        loaded_programs,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
        xdp::XdpError,
    },
    sys::SyscallError,
};
use lb_common::{abi::names, datapath::LOOPBACK};

use super::{
    ApplyError, Dataplane, HookError, PinError, Stage,
    adopt::Former,
    classifier,
    links::{Owner, Place},
    pins::Pins,
    xdp,
};

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
    #[error("interface lo is among dataplane.interfaces")]
    Loopback,
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Pins(#[from] PinError),
    #[error("taking over from a former xvip: {0}")]
    Tables(#[from] ApplyError),
}

/// An interface that has the programs.
#[derive(Debug)]
pub(super) struct Attachment {
    name: String,
    mode: Mode,
    /// Whether it still has a former daemon's.
    former: bool,
    /// Classifiers without a link (before Linux 6.6), which go when this is dropped.
    filters: Vec<SchedClassifierLink>,
    /// Links that are pinned nowhere.
    links: Vec<FdLink>,
}

impl Attachment {
    fn refused(&self, mode: &'static str, error: &ProgramError) -> AttachError {
        let interface = self.name.clone();
        match busy(error) {
            true => AttachError::Taken { interface, holder: "the kernel does not say which".to_owned() },
            false => AttachError::Xdp { interface, mode, reason: cause(error) },
        }
    }
}

/// Both classifiers and their places.
const CLASSIFIERS: [(&str, TcAttachType, Place); 2] = [
    (names::TC_INGRESS, TcAttachType::Ingress, Place::Ingress),
    (names::TC_EGRESS, TcAttachType::Egress, Place::Egress),
];

/// By which classifiers without a link are found again. No other tool gives out this priority by itself.
const PRIORITY: u16 = u16::from_be_bytes(*b"xv");
const HANDLE: TcHandle = TcHandle::new(0, 1);

impl Dataplane {
    /// Puts all programs on an interface. `holder` is the id of an XDP program that is there already, if one is. Where a former daemon
    /// has left its programs, they go on until [`Self::take_over`].
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
        let former = holder.and_then(|holder| self.former_mode(index, holder));
        let mut attachment = Attachment {
            name: interface.to_owned(),
            mode: former.unwrap_or(Mode::Native),
            former: true,
            filters: Vec::new(),
            links: Vec::new(),
        };
        match former {
            Some(mode) if wanted.is_none_or(|wanted| wanted == mode) => {}
            Some(_) => {
                log::warn!("interface {interface} changes to another mode: for a moment nothing is carried there");
                self.attach_anew(&mut attachment, index, wanted)?;
            }
            None => {
                if let Some(id) = holder {
                    return Err(AttachError::Taken { interface: interface.to_owned(), holder: describe(id) });
                }
                self.attach_anew(&mut attachment, index, wanted)?;
            }
        }
        let mode = attachment.mode;
        self.attached.insert(index, attachment);
        Ok(mode)
    }

    /// Whether an interface has the programs, as far as this knows.
    pub fn is_attached(&self, index: u32) -> bool {
        self.attached.contains_key(&index)
    }

    /// A program that somebody has taken off an interface, by its name. (One without a link, as classifiers before Linux 6.6, is not missed.)
    pub fn lost(&self, index: u32) -> Option<&'static str> {
        let (pins, attachment) = (self.pins.as_ref()?, self.attached.get(&index)?);
        let classifiers = CLASSIFIERS.iter().filter(|_| self.has_tcx).map(|(program, _, place)| (*program, *place));
        let mut all = std::iter::once((names::XDP_INGRESS, Place::Xdp(attachment.mode))).chain(classifiers);
        // An error says nothing about the program.
        let is_lost = |place| matches!(pins.links().holds(index, place), Ok(false));
        all.find(|(_, place)| is_lost(*place)).map(|(program, _)| program)
    }

    /// Forgets an interface that is gone: its programs went with it.
    pub fn forget(&mut self, present: impl Fn(u32) -> bool) -> Result<(), PinError> {
        for gone in self.attached.keys().copied().filter(|index| !present(*index)).collect::<Vec<_>>() {
            if let Some(pins) = &self.pins {
                pins.links().remove(Owner::Interface(gone))?;
            }
            // Dropped, the filters would be looked for on an interface that is not there.
            self.attached.remove(&gone).into_iter().flat_map(|gone| gone.filters).for_each(std::mem::forget);
        }
        Ok(())
    }

    /// Puts these programs in the place of a former daemon's, each by one update of its link, and removes what nobody needs any more. To be
    /// called when the tables are complete. With `inherits`, the loopback interface gets its program; see [`Self::inherits()`] for whether it did.
    pub fn take_over(&mut self, inherits: bool) -> Result<(), AttachError> {
        if let Some(pins) = &self.pins {
            // First the maps: if this process ends here, the next one reads a generation that is not behind the one in use.
            pins.publish()?;
        }
        self.stage = Stage::Carrying;
        self.take_over_hooks()?;
        let former: Vec<u32> = self.attached.iter().filter(|(_, at)| at.former).map(|(index, _)| *index).collect();
        for index in former {
            if let Some(mut attachment) = self.attached.remove(&index) {
                let replaced = self.replace(&mut attachment, index);
                self.attached.insert(index, attachment);
                replaced?;
            }
        }
        if inherits && let Err(error) = self.attach_loopback() {
            log::warn!(
                "connections that other nodes have carried to a backend on this host cannot go on here: {error}"
            );
        }
        if let Some(pins) = &self.pins {
            let links = pins.links();
            for owner in links.owners().into_iter().filter(|owner| !self.has(*owner)) {
                links.remove(owner)?;
            }
            for other in pins.other_layouts() {
                std::fs::remove_dir_all(&other).map_err(|error| PinError::new(&other, error))?;
            }
        }
        self.former = Former::default();
        Ok(())
    }

    /// Whether this daemon's programs are there.
    fn has(&self, owner: Owner) -> bool {
        match owner {
            Owner::Interface(index) => self.attached.contains_key(&index),
            Owner::Cgroup(_) => self.hooked.as_ref().is_some_and(|hooked| hooked.owner() == owner),
        }
    }

    /// Lets everything go on after the end of this process.
    pub fn keep(mut self) {
        self.stage = Stage::Kept;
    }

    /// The mode of the program that a former daemon has left on an interface, if the one that is there is that one.
    fn former_mode(&self, index: u32, holder: u32) -> Option<Mode> {
        let links = self.pins.as_ref()?.links();
        let is_it = |mode: &Mode| links.program(Owner::Interface(index), Place::Xdp(*mode)) == Some(holder);
        [Mode::Native, Mode::Generic].into_iter().find(is_it)
    }

    /// Updates the links of a former daemon; what cannot be updated is attached anew.
    fn replace(&mut self, attachment: &mut Attachment, index: u32) -> Result<(), AttachError> {
        for (program, point, place) in CLASSIFIERS {
            self.attach_classifier(attachment, index, program, point, place)?;
        }
        let place = Place::Xdp(attachment.mode);
        let program = xdp(&mut self.ebpf).fd().map_err(|error| attachment.refused("native", &error))?;
        let updated = match &self.pins {
            Some(pins) => pins.links().update(Owner::Interface(index), place, program.as_fd()),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        match updated {
            Ok(()) => {
                attachment.former = false;
                log::info!("interface {}: the programs of a former xvip are replaced", attachment.name);
                Ok(())
            }
            Err(error) => {
                log::warn!("interface {}: the former program cannot be replaced ({error})", attachment.name);
                self.attach_anew(attachment, index, Some(attachment.mode))
            }
        }
    }

    /// Attaches to an interface from which all that is left of former daemons is removed first.
    fn attach_anew(
        &mut self,
        attachment: &mut Attachment,
        index: u32,
        wanted: Option<Mode>,
    ) -> Result<(), AttachError> {
        attachment.former = false;
        self.clear(index)?;
        let outcome = self.attach_all(attachment, index, wanted);
        if outcome.is_err() {
            self.clear(index)?;
        }
        outcome
    }

    fn attach_all(&mut self, attachment: &mut Attachment, index: u32, wanted: Option<Mode>) -> Result<(), AttachError> {
        for (program, point, place) in CLASSIFIERS {
            self.attach_classifier(attachment, index, program, point, place)?;
        }
        self.attach_xdp(attachment, index, wanted)
    }

    fn attach_loopback(&mut self) -> Result<(), AttachError> {
        if self.is_attached(LOOPBACK) {
            return Err(AttachError::Loopback);
        }
        let mut attachment = Attachment {
            name: "lo".to_owned(),
            mode: Mode::Generic,
            former: false,
            filters: Vec::new(),
            links: Vec::new(),
        };
        self.attach_classifier(&mut attachment, LOOPBACK, names::TC_LOOPBACK, TcAttachType::Egress, Place::Egress)?;
        self.attached.insert(LOOPBACK, attachment);
        Ok(())
    }

    fn clear(&self, index: u32) -> Result<(), PinError> {
        self.pins.as_ref().map_or(Ok(()), |pins| pins.links().remove(Owner::Interface(index)))
    }

    fn attach_xdp(&mut self, attachment: &mut Attachment, index: u32, wanted: Option<Mode>) -> Result<(), AttachError> {
        let program = xdp(&mut self.ebpf);
        let refused = |mode, error: &ProgramError| attachment.refused(mode, error);
        let native = if wanted == Some(Mode::Generic) { None } else { Some(link_xdp(program, index, Hook::Driver)) };
        let (mode, link) = match native {
            Some(Ok(link)) => (Mode::Native, link),
            Some(Err(error)) if wanted == Some(Mode::Native) || busy(&error) => return Err(refused("native", &error)),
            other => {
                if let Some(Err(error)) = other {
                    log::warn!(
                        "interface {} has no native XDP ({}); using generic mode, which is several times slower",
                        attachment.name,
                        cause(&error)
                    );
                }
                (Mode::Generic, link_xdp(program, index, Hook::Skb).map_err(|error| refused("generic", &error))?)
            }
        };
        attachment.mode = mode;
        self.hold(attachment, index, Place::Xdp(mode), link)
    }

    /// Attaches a classifier, or puts it in the place of a former daemon's.
    fn attach_classifier(
        &mut self,
        attachment: &mut Attachment,
        index: u32,
        program: &'static str,
        point: TcAttachType,
        place: Place,
    ) -> Result<(), AttachError> {
        let interface = attachment.name.clone();
        let failed = |source| AttachError::Classifier { interface: interface.clone(), program, source };
        if !self.has_tcx {
            match qdisc_add_clsact(&interface) {
                Ok(()) => self.pins.as_ref().map_or(Ok(()), |pins| pins.links().note_qdisc(index))?,
                Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => return Err(failed(error.into())),
            }
            let filter = filter(classifier(&mut self.ebpf, program), &interface, point).map_err(failed)?;
            attachment.filters.push(filter);
            return Ok(());
        }
        let program = classifier(&mut self.ebpf, program);
        let fd = program.fd().map_err(failed)?;
        let update = |pins: &Pins| pins.links().update(Owner::Interface(index), place, fd.as_fd());
        if self.pins.as_ref().is_some_and(|pins| update(pins).is_ok()) {
            return Ok(());
        }
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let link = program.attach_with_options(&interface, point, options).and_then(|id| program.take_link(id));
        let link = link.map_err(failed)?.try_into().map_err(|_| failed(ProgramError::NotAttached))?;
        self.hold(attachment, index, place, link)
    }

    /// Keeps a new link for as long as it is needed: by its pin, which outlives this process, or else here.
    fn hold(&self, attachment: &mut Attachment, index: u32, place: Place, link: FdLink) -> Result<(), AttachError> {
        match &self.pins {
            Some(pins) => pins.links().add(Owner::Interface(index), place, link)?,
            None => attachment.links.push(link),
        }
        Ok(())
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        let removed = match (&self.pins, self.stage) {
            (_, Stage::Kept) => {
                let filters = self.attached.values_mut().flat_map(|attachment| attachment.filters.drain(..));
                filters.for_each(std::mem::forget);
                Ok(())
            }
            (Some(pins), Stage::Carrying) => pins.links().remove_all().and_then(|()| pins.remove()),
            // Of a start that came to nothing, only what it has made itself: a former daemon's programs go on.
            (Some(pins), Stage::Preparing) => {
                let own = self.attached.iter().filter(|(_, attachment)| !attachment.former);
                let removed =
                    own.map(|(index, _)| *index).try_for_each(|index| pins.links().remove(Owner::Interface(index)));
                let removed = removed.and_then(|()| match &self.hooked {
                    Some(hooked) if !hooked.is_former() => pins.links().remove(hooked.owner()),
                    _ => Ok(()),
                });
                let removed = removed.and_then(|()| pins.discard_staged());
                pins.remove_empty();
                removed
            }
            (None, _) => Ok(()),
        };
        if let Err(error) = removed {
            log::warn!("{error}");
        }
    }
}

fn link_xdp(program: &mut Xdp, index: u32, hook: Hook) -> Result<FdLink, ProgramError> {
    let link = program.attach_to_if_index(index, hook).and_then(|id| program.take_link(id))?;
    // Since Linux 5.9 the kernel makes a link for every XDP program, and refuses what it refuses by netlink too.
    link.try_into().map_err(|_| ProgramError::NotAttached)
}

/// Attaches a classifier where there are no links yet, in the place of the one that a former daemon has left, if it has.
fn filter(
    program: &mut SchedClassifier,
    interface: &str,
    point: TcAttachType,
) -> Result<SchedClassifierLink, ProgramError> {
    let left = SchedClassifierLink::attached(interface, point, PRIORITY, HANDLE, None).map_err(TcError::from)?;
    let id = program.attach_to_link(left).or_else(|_| {
        let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
        program.attach_with_options(interface, point, TcAttachOptions::Netlink(options))
    })?;
    program.take_link(id)
}

/// Takes the classifiers without a link off an interface.
pub(super) fn remove_filters(interface: &str) {
    for point in [TcAttachType::Ingress, TcAttachType::Egress] {
        // One that is not there is as good as removed, and dropping a link detaches.
        drop(SchedClassifierLink::attached(interface, point, PRIORITY, HANDLE, None));
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
