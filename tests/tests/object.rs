//! The object that the daemon carries: what is in it, and what must not be.

use lb_common::abi::names;
use lb_userspace::dataplane::OBJECT;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind, SymbolSection};

fn file() -> object::File<'static> {
    object::File::parse(OBJECT).expect("an ELF file")
}

/// A panic is an endless loop to the verifier, and none is left when every access is checked.
#[test]
fn nothing_can_panic() {
    let file = file();
    let found: Vec<_> =
        file.symbols().filter_map(|symbol| symbol.name().ok()).filter(|name| name.contains("panic")).collect();
    assert!(found.is_empty(), "{found:?}");
}

/// What is called but not there would be found missing only at load.
#[test]
fn nothing_is_left_undefined() {
    let file = file();
    let named =
        file.symbols().filter(|symbol| symbol.is_undefined() && symbol.name().is_ok_and(|name| !name.is_empty()));
    let found: Vec<_> = named.map(|symbol| symbol.name().unwrap_or_default()).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn programs_are_where_loaders_look_for_them() {
    let file = file();
    // What the compiler takes for granted (memcpy and its like) is in .text, which nothing loads by itself.
    let mut found: Vec<_> = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_global())
        .map(|symbol| {
            let SymbolSection::Section(index) = symbol.section() else {
                panic!("{:?} is in no section", symbol.name());
            };
            let section = file.section_by_index(index).expect("its section");
            (symbol.name().expect("a name"), section.name().expect("a name").to_owned())
        })
        .filter(|(_, section)| section != ".text")
        .collect();
    found.sort_unstable();
    let expected = [
        (names::CONNECT4, "cgroup/connect4"),
        (names::CONNECT6, "cgroup/connect6"),
        (names::GETPEERNAME4, "cgroup/getpeername4"),
        (names::GETPEERNAME6, "cgroup/getpeername6"),
        (names::SOCK_RELEASE, "cgroup/sock_release"),
        (names::TC_EGRESS, "classifier"),
        (names::TC_INGRESS, "classifier"),
        (names::TC_LOOPBACK, "classifier"),
        (names::XDP_CLOCK, "xdp"),
        (names::XDP_EXPIRED, "xdp"),
        (names::XDP_ICMP, "xdp"),
        (names::XDP_INGRESS, "xdp"),
        (names::XDP_SETTLE4, "xdp"),
        (names::XDP_SETTLE6, "xdp"),
    ];
    assert_eq!(found, expected.map(|(name, section)| (name, section.to_owned())));
}

#[test]
fn maps_are_all_there() {
    let file = file();
    let section = file.section_by_name(".maps").expect("maps").index();
    let found: Vec<_> = file
        .symbols()
        .filter(|symbol| symbol.section_index() == Some(section))
        .filter_map(|symbol| symbol.name().ok())
        .collect();
    for name in names::MAPS {
        assert!(found.contains(&name), "no {name} in {found:?}");
    }
}

/// The license opens the helpers that the programs call, and BTF is what the maps are declared in.
#[test]
fn what_the_kernel_asks_for_is_there() {
    let file = file();
    let license = file.section_by_name("license").expect("a license").data().expect("its text");
    assert!(license.starts_with(b"Dual MIT/GPL") || license.starts_with(b"GPL"), "{license:?}");
    assert!(file.section_by_name(".BTF").is_some());
}
