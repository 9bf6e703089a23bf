//! The programs that put a packet in front of the program under test, and the clock around their runs.

use anyhow::Context as _;
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, ProgramArray},
    programs::{ProgramError, ProgramFd, TestRun as _, TestRunOptions, Xdp, XdpMode},
};
use lb_tests_ebpf::{FRAME, Flow, Plan, programs};
use nix::time::{ClockId, clock_gettime};

/// The benchmark's programs, as built by this package's build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench-ebpf"));

/// A frame of the only length that is measured.
pub(super) type Frame = [u8; FRAME];

/// What repeated runs took, and what the last of them returned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Runs {
    /// Nanoseconds a run, of this thread's CPU time: who else runs on the machine does not count.
    pub(super) ns: f64,
    pub(super) action: u32,
    pub(super) frame: Frame,
}

/// The loaded harness. Frames seem to come from one interface of the thread's network namespace.
pub(super) struct Harness {
    ebpf: Ebpf,
    plan: Array<MapData, Plan>,
    template: Array<MapData, [u64; FRAME / 8]>,
    flows: Array<MapData, Flow>,
    programs: ProgramArray<MapData>,
    interface: u32,
}

impl Harness {
    pub(super) fn load(interface: u32) -> anyhow::Result<Self> {
        let mut ebpf = EbpfLoader::new().load(OBJECT).context("loading the benchmark's programs")?;
        for (_, program) in ebpf.programs_mut() {
            <&mut Xdp>::try_from(program)?.load()?;
        }
        // The kernel calls attached programs directly (bpf_dispatcher). For others a test run patches that in and out again,
        // which takes longer than the runs.
        for (name, idle) in [("harness4", "eth1"), ("harness6", "eth2"), ("bare", "eth3")] {
            let program: &mut Xdp = ebpf.program_mut(name).context("a program of the harness")?.try_into()?;
            program.attach(idle, XdpMode::Driver).with_context(|| format!("attaching {name}"))?;
        }
        let mut take = |name| ebpf.take_map(name).with_context(|| format!("map {name}"));
        let plan = Array::try_from(take("PLAN")?)?;
        let template = Array::try_from(take("TEMPLATE")?)?;
        let flows = Array::try_from(take("FLOWS")?)?;
        let programs = ProgramArray::try_from(take("PROGRAMS")?)?;
        let mut harness = Self { ebpf, plan, template, flows, programs, interface };
        for (place, name) in [(programs::BARE, "bare"), (programs::NO_OP, "no_op")] {
            let program = harness.program(name)?.fd()?.try_clone()?;
            harness.put(place, &program)?;
        }
        Ok(harness)
    }

    /// Puts a program where plans can name it.
    pub(super) fn put(&mut self, place: u32, program: &ProgramFd) -> anyhow::Result<()> {
        self.programs.set(place, program, 0).with_context(|| format!("program {place} cannot be jumped to"))
    }

    pub(super) fn set_flow(&mut self, place: u32, flow: Flow) -> anyhow::Result<()> {
        self.flows.set(place, flow, 0).with_context(|| format!("writing flow {place}"))
    }

    /// Runs the plan's program `repeat` times over `template`.
    pub(super) fn run(&mut self, template: &Frame, plan: Plan, repeat: u32) -> anyhow::Result<Runs> {
        let mut words = [0; FRAME / 8];
        for (word, bytes) in words.iter_mut().zip(template.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into()?);
        }
        self.template.set(0, words, 0)?;
        self.plan.set(0, plan, 0)?;
        // IPv6 headers have their version first, after the Ethernet header.
        let name = if template[14] >> 4 == 6 { "harness6" } else { "harness4" };
        self.timed(name, template, repeat)
    }

    /// Runs the bare program `repeat` times with no harness before it.
    pub(super) fn run_alone(&self, template: &Frame, repeat: u32) -> anyhow::Result<Runs> {
        self.timed("bare", template, repeat)
    }

    fn timed(&self, name: &str, template: &Frame, repeat: u32) -> anyhow::Result<Runs> {
        let program = self.program(name)?;
        let context = self.context();
        let mut frame = *template;
        let options = TestRunOptions {
            data_in: Some(template),
            data_out: Some(&mut frame),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::new()
        };
        let start = cpu_time()?;
        let result = program.test_run(options)?;
        let ns = (cpu_time()? - start) as f64 / f64::from(repeat);
        Ok(Runs { ns, action: result.return_value, frame })
    }

    /// `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    fn context(&self) -> [u8; 24] {
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&(FRAME as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&self.interface.to_ne_bytes());
        context
    }

    fn program(&self, name: &str) -> Result<&Xdp, ProgramError> {
        self.ebpf.program(name).expect("the object has the programs it was built with").try_into()
    }
}

/// Nanoseconds that this thread has run.
fn cpu_time() -> anyhow::Result<i64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}
