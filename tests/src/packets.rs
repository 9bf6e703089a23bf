//! Stand-in until the packet table lands: loads every program.

use lb_userspace::dataplane::{Dataplane, Options};

/// What one run of the table found.
#[derive(Debug)]
pub struct Summary {
    pub cases: usize,
    pub failed: Vec<String>,
    pub programs: Vec<(String, u32)>,
}

pub fn run() -> Summary {
    let mut summary = Summary { cases: 1, failed: Vec::new(), programs: Vec::new() };
    match Dataplane::load(&Options { max_connections: 1000, bpffs: None }) {
        Ok(dataplane) => {
            summary.programs =
                dataplane.programs().unwrap().into_iter().map(|(name, count)| (name, count.unwrap_or(0))).collect();
        }
        Err(error) => summary.failed.push(format!("load: {error:?}")),
    }
    summary
}
