//! From facts about a machine to the steps that make it ready: pure, so that machines which are not here can be tried.

use std::fmt;

use crate::setup::{Need, packages::Package};

/// What was found out about this machine, as far as the needs at hand ask for it.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    pub(crate) apt: bool,
    pub(crate) rustup: bool,
    /// Packages that are needed and whose proof is absent.
    pub(crate) absent: Vec<&'static Package>,
    pub(crate) linker: Option<Version>,
    pub(crate) bpffs: bool,
    pub(crate) bpf: Bpf,
}

/// The toolchain that rustup knows by the name `bpf`.
#[derive(Debug)]
pub(crate) enum Bpf {
    /// It has built a BPF program with the linker that is installed.
    Proven,
    /// Not known to work; everything rustup has, that name included where it exists.
    Unproven(Vec<Toolchain>),
}

impl Default for Bpf {
    fn default() -> Self {
        Self::Unproven(Vec::new())
    }
}

/// One of rustup's toolchains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    pub(crate) name: String,
    pub(crate) release: Version,
    pub(crate) llvm: u32,
    /// The sources of `core`, which BPF targets build themselves.
    pub(crate) sources: bool,
}

/// Major, minor, patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32, pub(crate) u32);

/// One thing to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Packages(Vec<&'static Package>),
    Linker,
    /// Try in order until one has built a BPF program.
    Toolchain(Vec<Candidate>),
    BpfFs,
}

/// A way to come by the toolchain named `bpf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Candidate {
    /// It exists already.
    Linked,
    /// Another of rustup's toolchains, by name.
    Installed(String),
    /// A dated nightly with sources from rustup's server.
    Nightly,
    /// The distribution's own compiler.
    Distribution,
}

/// Why a machine cannot be made ready from here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    NoRustup,
    NoApt(Vec<&'static Package>),
}

/// Older ones emit a BTF name that the kernel refuses.
const LINKER_FROM: Version = Version(0, 10, 2);
/// From here on it wants LLVM 23.
const LINKER_BELOW: Version = Version(0, 13, 0);
/// The newest LLVM whose bitcode those linkers read.
const LLVM: u32 = 22;
/// The workspace's `rust-version`.
const RUST: Version = Version(1, 88, 0);

/// The steps in the order in which they work: C compiler, linker, toolchain, whose trial needs both.
pub(crate) fn plan(machine: &Machine, needs: &[Need]) -> Result<Vec<Step>, Blocked> {
    if !machine.rustup {
        return Err(Blocked::NoRustup);
    }
    let mut steps = Vec::new();
    if !machine.absent.is_empty() {
        if !machine.apt {
            return Err(Blocked::NoApt(machine.absent.clone()));
        }
        steps.push(Step::Packages(machine.absent.clone()));
    }
    if needs.contains(&Need::Compile) {
        if !machine.linker.is_some_and(|version| (LINKER_FROM..LINKER_BELOW).contains(&version)) {
            steps.push(Step::Linker);
        }
        if let Bpf::Unproven(toolchains) = &machine.bpf {
            steps.push(Step::Toolchain(candidates(toolchains, machine.apt)));
        }
    }
    if needs.contains(&Need::Lab) && !machine.bpffs {
        steps.push(Step::BpfFs);
    }
    Ok(steps)
}

/// What is here comes before what must be fetched, and rustup's before the distribution's.
fn candidates(toolchains: &[Toolchain], apt: bool) -> Vec<Candidate> {
    let fit = |toolchain: &&Toolchain| toolchain.sources && toolchain.release >= RUST && toolchain.llvm <= LLVM;
    let (linked, mut others): (Vec<_>, Vec<_>) = toolchains.iter().filter(fit).partition(|one| one.name == "bpf");
    others.sort_by_key(|one| std::cmp::Reverse(one.release));
    let linked = linked.iter().map(|_| Candidate::Linked);
    let others = others.iter().map(|one| Candidate::Installed(one.name.clone()));
    linked.chain(others).chain([Candidate::Nightly]).chain(apt.then_some(Candidate::Distribution)).collect()
}

impl Version {
    /// The first version number in a text such as `bpf-linker 0.10.4` or `1.97.0-nightly`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| {
            let number = word.split(['-', '+']).next()?;
            let mut parts = number.split('.').map(str::parse);
            let version = Self(parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
            parts.next().is_none().then_some(version)
        })
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRustup => {
                write!(f, "rustup is needed to choose between compilers: install it from https://rustup.rs")
            }
            Self::NoApt(packages) => {
                write!(f, "there is no apt-get here; install what these Debian packages bring, then try again:")?;
                packages.iter().try_for_each(|package| write!(f, "\n  {:16} {}", package.name, package.why))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::packages::PACKAGES;

    const ALL: &[Need] = &[Need::Compile, Need::Lab, Need::Peers, Need::Fuzz, Need::Vm];

    fn toolchain(name: &str, minor: u32, llvm: u32, sources: bool) -> Toolchain {
        Toolchain { name: name.to_owned(), release: Version(1, minor, 0), llvm, sources }
    }

    fn ready() -> Machine {
        Machine {
            apt: true,
            rustup: true,
            absent: Vec::new(),
            linker: Some(Version(0, 10, 4)),
            bpffs: true,
            bpf: Bpf::Proven,
        }
    }

    #[test]
    fn a_machine_that_is_ready_needs_nothing() {
        assert_eq!(plan(&ready(), ALL), Ok(vec![]));
        assert_eq!(plan(&Machine { apt: false, ..ready() }, ALL), Ok(vec![]));
    }

    #[test]
    fn a_bare_machine_needs_everything_in_the_order_that_works() {
        let absent: Vec<_> = PACKAGES.iter().collect();
        let machine = Machine { apt: true, rustup: true, absent: absent.clone(), ..Machine::default() };
        let toolchain = Step::Toolchain(vec![Candidate::Nightly, Candidate::Distribution]);
        let steps = vec![Step::Packages(absent), Step::Linker, toolchain, Step::BpfFs];
        assert_eq!(plan(&machine, ALL), Ok(steps));
    }

    #[test]
    fn a_build_alone_needs_no_filesystem() {
        let machine = Machine { bpffs: false, ..ready() };
        assert_eq!(plan(&machine, &[Need::Compile]), Ok(vec![]));
        assert_eq!(plan(&machine, &[Need::Lab]), Ok(vec![Step::BpfFs]));
    }

    #[test]
    fn only_linkers_that_fit_are_kept() {
        for (linker, kept) in [
            (None, false),
            (Some(Version(0, 10, 1)), false),
            (Some(Version(0, 10, 2)), true),
            (Some(Version(0, 12, 9)), true),
            (Some(Version(0, 13, 0)), false),
        ] {
            let steps = plan(&Machine { linker, ..ready() }, &[Need::Compile]).unwrap();
            assert_eq!(steps.is_empty(), kept, "{linker:?}");
        }
    }

    #[test]
    fn toolchains_that_are_here_come_first_if_they_fit() {
        let toolchains = [
            toolchain("stable", 95, 22, false),
            toolchain("old", 87, 20, true),
            toolchain("earlier", 94, 21, true),
            toolchain("future", 99, 23, true),
            toolchain("nightly", 97, 22, true),
            toolchain("bpf", 96, 22, true),
        ];
        let installed = |name: &str| Candidate::Installed(name.to_owned());
        let here = [Candidate::Linked, installed("nightly"), installed("earlier"), Candidate::Nightly];
        assert_eq!(candidates(&toolchains, false), here);
        assert_eq!(candidates(&toolchains, true).last(), Some(&Candidate::Distribution));
        assert_eq!(candidates(&[toolchain("bpf", 96, 22, false)], false), [Candidate::Nightly]);
    }

    #[test]
    fn what_cannot_be_installed_is_listed() {
        let absent = vec![&PACKAGES[0]];
        let blocked = plan(&Machine { apt: false, absent, ..ready() }, ALL).unwrap_err().to_string();
        assert!(blocked.contains("gcc ") && blocked.contains("ring compiles C"), "{blocked}");
        let blocked = plan(&Machine { rustup: false, ..ready() }, ALL).unwrap_err().to_string();
        assert!(blocked.contains("rustup.rs"), "{blocked}");
    }

    #[test]
    fn versions_are_found_in_what_programs_print() {
        assert_eq!(Version::parse("bpf-linker 0.10.4\n"), Some(Version(0, 10, 4)));
        assert_eq!(Version::parse("1.97.0-nightly"), Some(Version(1, 97, 0)));
        assert_eq!(Version::parse("bpf-linker"), None);
        assert_eq!(Version::parse("1.2"), None);
    }
}
