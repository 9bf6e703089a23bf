//! A short run of each fuzz target; `cargo fuzz run TARGET` from the root goes on for as long as one likes.

use std::{fs, path::Path, process::ExitStatus};

use anyhow::{Context as _, Result, ensure};

use crate::exec::{command, root_dir, stream};

/// Seconds given to one target.
const SECONDS: u32 = 20;

/// The targets of `fuzz/`, by name.
pub(crate) fn targets() -> Result<Vec<String>> {
    let directory = root_dir().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    ensure!(!names.is_empty(), "no fuzz target in {}", directory.display());
    names.sort();
    Ok(names)
}

/// Runs one target for [`SECONDS`], from its committed seeds and whatever earlier runs found.
///
/// Coverage and sanitizer flags are unstable, but a stable compiler takes them when told so.
pub(crate) fn smoke(target: &str) -> Result<ExitStatus> {
    // The first directory takes what is found, the second is only read.
    let corpus = Path::new("fuzz/corpus").join(target);
    fs::create_dir_all(root_dir().join(&corpus)).with_context(|| format!("making {}", corpus.display()))?;
    let mut command = command("cargo");
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["fuzz", "run", target])
        .args([&corpus, &Path::new("fuzz/seeds").join(target)]);
    command.args(["--", &format!("-max_total_time={SECONDS}"), "-rss_limit_mb=2048", "-timeout=10", "-verbosity=0"]);
    command.args(["-print_final_stats=1"]);
    stream(&mut command, |line| println!("{line}"))
}
