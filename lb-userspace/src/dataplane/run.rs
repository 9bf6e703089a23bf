//! Single runs of the programs outside of any interface (`BPF_PROG_TEST_RUN`), for tests, benchmarks and the kernel's clock.

use std::time::{Duration, Instant};

use aya::programs::{ProgramError, ProgramFd, TestRun as _, TestRunOptions, Xdp};
use lb_common::abi::names;
use nix::time::{ClockId, clock_getres};

use super::{Dataplane, LoadError, classifier, clock, xdp};

/// What a program made of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The program's return value: an XDP action, or that of a classifier.
    pub action: u32,
    pub frame: Vec<u8>,
}

impl Dataplane {
    /// Runs `xdp_ingress` over one frame, which seems to come from the loopback interface of this thread's namespace.
    pub fn ingress(&mut self, frame: &[u8]) -> Result<Run, ProgramError> {
        let mut out = vec![0; frame.len() + 256];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = xdp(&mut self.ebpf).test_run(options)?;
        out.truncate(result.data_size_out as usize);
        Ok(Run { action: result.return_value, frame: out })
    }

    /// `xdp_ingress`, for a benchmark to jump to.
    pub fn ingress_program(&self) -> Result<&ProgramFd, ProgramError> {
        let program = self.ebpf.program(names::XDP_INGRESS).expect("the object has the programs it was built with");
        <&Xdp>::try_from(program)?.fd()
    }

    /// The kernel's ticks now, which connections are stamped with.
    pub fn ticks(&mut self) -> Result<u64, ProgramError> {
        // The shortest frame that test runs take is an Ethernet header.
        let mut out = [0; 14];
        let options = TestRunOptions { data_in: Some(&[0; 14]), data_out: Some(&mut out), ..TestRunOptions::new() };
        clock(&mut self.ebpf).test_run(options)?;
        let mut ticks = [0; 8];
        ticks.copy_from_slice(&out[..8]);
        Ok(u64::from_ne_bytes(ticks))
    }

    /// Runs `tc_egress` over one frame.
    pub fn egress(&mut self, frame: &[u8]) -> Result<Run, ProgramError> {
        let mut out = vec![0; frame.len() + 256];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = classifier(&mut self.ebpf, names::TC_EGRESS).test_run(options)?;
        out.truncate(result.data_size_out as usize);
        Ok(Run { action: result.return_value, frame: out })
    }
}

/// The kernel's ticks, which go with the monotonic clock, counted from one moment on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticker {
    ticks: u64,
    at: Instant,
    rate: u64,
}

impl Dataplane {
    pub(super) fn ticker(&mut self) -> Result<Ticker, LoadError> {
        Ok(Ticker { ticks: self.ticks().map_err(LoadError::Clock)?, at: Instant::now(), rate: ticks_per_second() })
    }
}

impl Ticker {
    pub(super) fn now(&self) -> u64 {
        self.ticks + self.count(self.at.elapsed())
    }

    /// The time that so many ticks take.
    pub(super) fn time(&self, ticks: u32) -> Duration {
        Duration::from_millis(u64::from(ticks) * 1000 / self.rate)
    }

    /// Ticks in that time.
    pub(super) fn count(&self, time: Duration) -> u64 {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX).saturating_mul(self.rate) / 1000
    }
}

/// Ticks of the kernel's timer a second (`CONFIG_HZ`): the coarse clock moves once a tick.
pub fn ticks_per_second() -> u64 {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(4_000_000, |length| length.tv_nsec());
    1_000_000_000 / u64::try_from(tick).unwrap_or(1).max(1)
}
