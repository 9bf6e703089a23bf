//! `clean`: removes what a lab or a daemon that was killed left on this host. What was built is `cargo clean`'s.

use std::{fs, path::Path};

use anyhow::Result;

use crate::{
    exec::{capture, exec, root_command, step},
    setup,
};

/// The lab names everything it makes `xv-<pid>-…`, after the program that made it.
const PREFIX: &str = "xv-";
const NAMESPACES: &str = "/run/netns";
const LAB_FILES: &str = "/run/xvip-lab";
/// Where the root of the cgroups usually is; labs of programs that are deeper are swept by the next lab there.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
const WHY: &str = "to remove namespaces and pins";

pub(crate) fn run() -> Result<()> {
    for name in orphans(&entries(NAMESPACES)?) {
        step(format!("removing namespace {name}"));
        let inside = capture(root_command("ip", WHY)?.args(["netns", "pids", name]))?;
        for pid in inside.split_whitespace() {
            // It may be gone already.
            let _ = exec(root_command("kill", WHY)?.args(["-KILL", pid]));
        }
        exec(root_command("ip", WHY)?.args(["netns", "delete", name]))?;
    }
    for directory in CGROUPS {
        for name in orphans(&entries(directory)?) {
            step(format!("removing cgroup {directory}/{name}"));
            exec(root_command("rmdir", WHY)?.arg(Path::new(directory).join(name)))?;
        }
    }
    for directory in [LAB_FILES, setup::BPFFS] {
        let names = entries(directory)?;
        orphans(&names).into_iter().try_for_each(|name| remove(directory, name))?;
    }
    let pins = entries(setup::BPFFS)?;
    let pins = pins.iter().filter(|name| name.starts_with("xvip"));
    if is_running("xvip")? {
        pins.for_each(|name| step(format!("keeping {}/{name}: an xvip is running here", setup::BPFFS)));
    } else {
        pins.into_iter().try_for_each(|name| remove(setup::BPFFS, name))?;
    }
    setup::unmount_own_bpffs()?;
    step("clean; `cargo clean` removes what was built");
    Ok(())
}

fn remove(directory: &str, name: &str) -> Result<()> {
    let path = Path::new(directory).join(name);
    step(format!("removing {}", path.display()));
    exec(root_command("rm", WHY)?.args(["--recursive", "--one-file-system", "--"]).arg(path))
}

/// The names in a directory that may be absent, or root's alone.
fn entries(directory: &str) -> Result<Vec<String>> {
    if !Path::new(directory).is_dir() {
        return Ok(Vec::new());
    }
    if let Ok(entries) = fs::read_dir(directory) {
        return Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect());
    }
    let names = capture(root_command("ls", WHY)?.args(["--almost-all", "-1", directory]))?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// Names of the lab's things whose maker has ended.
fn orphans(names: &[String]) -> Vec<&str> {
    let ended = |pid: u32| !Path::new("/proc").join(pid.to_string()).exists();
    names.iter().map(String::as_str).filter(|name| owner(name).is_some_and(ended)).collect()
}

/// The pid in `xv-<pid>-…`.
fn owner(name: &str) -> Option<u32> {
    let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.parse().ok().filter(|pid| *pid > 0)
}

fn is_running(program: &str) -> Result<bool> {
    let is_it = |process: fs::DirEntry| {
        fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name.trim_end() == program)
    };
    Ok(fs::read_dir("/proc")?.flatten().any(is_it))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_labs_own_names_have_an_owner() {
        assert_eq!(owner("xv-42-demo0-client"), Some(42));
        for other in ["xv-42", "xv--1-a", "xv-0-a", "xv-a-b", "xvip", "cni-42-a"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn what_a_living_program_made_is_no_orphan() {
        let (mine, dead) = (format!("xv-{}-a", std::process::id()), format!("xv-{}-a", u32::MAX));
        assert_eq!(orphans(&[mine, dead.clone(), "eth0".to_owned()]), [dead]);
    }
}
