//! The invariants of ARCHITECTURE.md, read off the sources.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The sources of the workspace, with their paths from its root.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut waiting: Vec<PathBuf> =
        ["lb-common", "lb-ebpf", "lb-userspace", "tests", "xtask"].map(|name| root.join(name)).to_vec();
    let mut found = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "toml") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path.strip_prefix(root).unwrap().to_owned(), text));
        }
    }
    assert!(found.len() > 50, "only {} files found", found.len());
    found
}

/// Lines of code in files that `wanted` picks which `offends` finds wrong.
fn offences(wanted: impl Fn(&Path) -> bool, offends: impl Fn(&str) -> bool) -> Vec<String> {
    let mut list = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| wanted(path)) {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            if offends(line) {
                list.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    list
}

fn is_code(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

fn any(line: &str, words: &[&str]) -> bool {
    words.iter().any(|word| line.contains(word))
}

#[test]
fn only_the_dataplane_knows_aya() {
    let wanted = |path: &Path| {
        is_code(path) && path.starts_with("lb-userspace/src") && !path.starts_with("lb-userspace/src/dataplane")
    };
    let found = offences(wanted, |line| any(line, &["aya::", "use aya"]));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_packet_decision_knows_no_clock_and_no_io() {
    // `host` and `maglev` build tables in memory, and tests may use what they like: they are compiled for the host only.
    let wanted = |path: &Path| {
        let host_only = path.ends_with("host.rs") || path.to_string_lossy().contains("tests");
        is_code(path) && path.starts_with("lb-common/src") && !host_only
    };
    let forbidden = ["std::time", "Instant", "SystemTime", "std::net::Tcp", "std::fs", "std::io", "tokio", "aya_ebpf"];
    let found = offences(wanted, |line| any(line, &forbidden));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_pure_rooms_know_no_clock_and_no_task() {
    let wanted = |path: &Path| {
        let pure = [
            "health/counter.rs",
            "reconcile",
            "vrrp/action.rs",
            "vrrp/announcing.rs",
            "vrrp/machine",
            "vrrp/machine.rs",
            "vrrp/packet",
            "vrrp/reception",
            "vrrp/reception.rs",
            "vrrp/router",
            "vrrp/router.rs",
            "vrrp/settings.rs",
            "vrrp/simulation",
        ];
        pure.iter().any(|room| path.starts_with(Path::new("lb-userspace/src").join(room)))
    };
    let forbidden = ["tokio", "Instant", "SystemTime", "std::fs", "std::io", "async ", ".await", "socket"];
    let found = offences(wanted, |line| any(line, &forbidden));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn dependencies_point_inward() {
    let manifests: Vec<(PathBuf, String)> =
        sources().into_iter().filter(|(path, _)| path.ends_with("Cargo.toml")).collect();
    let depends = |package: &str, on: &str| {
        let (_, text) = manifests.iter().find(|(path, _)| path == &Path::new(package).join("Cargo.toml")).unwrap();
        text.lines().any(|line| line.starts_with(&format!("{on}.")) || line.starts_with(&format!("{on} ")))
    };
    for (package, forbidden) in [
        ("lb-common", ["lb-ebpf", "lb-userspace", "tokio", "aya-ebpf"].as_slice()),
        ("lb-ebpf", &["lb-userspace", "tokio"]),
        ("lb-userspace", &["lb-tests", "xtask"]),
        ("xtask", &["lb-common", "lb-ebpf", "lb-userspace", "lb-tests", "tokio"]),
    ] {
        for on in forbidden {
            assert!(!depends(package, on), "{package} depends on {on}");
        }
    }
    assert!(depends("lb-userspace", "lb-common"), "the check sees no dependency at all");
}

#[test]
fn every_package_takes_the_lints_of_the_workspace() {
    for (path, text) in sources().iter().filter(|(path, _)| path.ends_with("Cargo.toml")) {
        assert!(text.contains("[lints]\nworkspace = true"), "{} does not", path.display());
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for (path, text) in sources().iter().filter(|(path, _)| is_code(path)) {
        assert!(text.starts_with("//!"), "{} does not open with //!", path.display());
    }
}

#[test]
fn unsafe_stays_where_it_belongs() {
    let allowed = [
        "lb-common/src/abi/pod.rs",
        "lb-common/src/address.rs",
        "lb-common/src/frame.rs",
        "lb-common/src/shared.rs",
        "lb-common/src/wire.rs",
        "lb-ebpf",
        "lb-userspace/build.rs",
        "lb-userspace/src/dataplane",
        "lb-userspace/src/host",
        "lb-userspace/src/vrrp/wire",
        "tests",
    ];
    let wanted = |path: &Path| is_code(path) && !allowed.iter().any(|place| path.starts_with(place));
    let found = offences(wanted, |line| any(line, &["unsafe {", "unsafe fn", "unsafe impl"]));
    assert!(found.is_empty(), "{found:#?}");
}
