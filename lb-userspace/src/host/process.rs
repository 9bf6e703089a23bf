//! Other processes of this host.

use std::fs;

/// One by its number, in words: `process 1234 (xvip run -c xvip.toml)`.
pub fn named(id: u32) -> String {
    let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    format!("process {id} ({})", words.join(" ").trim_end())
}
