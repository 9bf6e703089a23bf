//! Stand-in until the packet table lands: loads every program and runs one frame through each.

use aya::programs::{ProgramFd, Xdp};

/// What one run of the table found.
#[derive(Debug)]
pub struct Summary {
    pub cases: usize,
    pub failed: Vec<String>,
    pub programs: Vec<(String, u32)>,
}

pub fn run() -> Summary {
    let mut summary = Summary { cases: 1, failed: Vec::new(), programs: Vec::new() };
    if let Err(error) = load(&mut summary) {
        summary.failed.push(format!("load: {error:?}"));
    }
    summary
}

fn load(summary: &mut Summary) -> anyhow::Result<()> {
    let mut bpf = aya::EbpfLoader::new().load(lb_userspace::dataplane::OBJECT)?;
    for (name, program) in bpf.programs_mut() {
        let xdp: &mut Xdp = program.try_into()?;
        xdp.load()?;
        let _: &ProgramFd = xdp.fd()?;
        summary.programs.push((name.to_owned(), xdp.info()?.verified_instruction_count().unwrap_or_default()));
    }
    Ok(())
}
