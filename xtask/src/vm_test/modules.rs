//! Which module files a guest needs, in the order in which they can be loaded.
//!
//! `modules.dep` is made when a kernel is installed and so absent from an unpacked package; what it would say stands in each
//! module, as the `depends=` string of its `.modinfo` section.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use super::output;

/// A module, uncompressed.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// The wanted modules and all that they depend on, dependencies first; what is built into the kernel is left out.
///
/// # Errors
/// When the kernel has no such module, or a file cannot be read.
pub(super) fn resolve(directory: &Path, wanted: &[&str]) -> anyhow::Result<Vec<Module>> {
    let builtin = fs::read_to_string(directory.join("modules.builtin")).context("reading modules.builtin")?;
    let builtin: HashSet<String> = builtin.lines().filter_map(|path| module_name(Path::new(path))).collect();
    let mut files = HashMap::new();
    index(&directory.join("kernel"), &mut files).with_context(|| format!("listing {}", directory.display()))?;
    let load = |name: &str| match files.get(name) {
        Some(path) => Ok(Some(Module { name: name.to_owned(), bytes: read(path)? })),
        None if builtin.contains(name) => Ok(None),
        None => bail!("{} has no module {name}", directory.display()),
    };
    let mut ordered = Vec::new();
    for name in wanted {
        visit(name, &load, &mut ordered)?;
    }
    Ok(ordered)
}

/// Depth first, so that dependencies come first; the kernel's build refuses a cycle, so this ends.
fn visit(
    name: &str,
    load: &impl Fn(&str) -> anyhow::Result<Option<Module>>,
    ordered: &mut Vec<Module>,
) -> anyhow::Result<()> {
    if ordered.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let Some(module) = load(name)? else {
        return Ok(());
    };
    for dependency in depends(&module.bytes) {
        visit(&dependency, load, ordered)?;
    }
    ordered.push(module);
    Ok(())
}

/// The value of `depends=` among the NUL-terminated strings of `.modinfo`.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(canonical).collect()
}

fn index(directory: &Path, files: &mut HashMap<String, PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            index(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => output(Command::new("xz").arg("--decompress").arg("--stdout").arg(path)),
        _ => fs::read(path).with_context(|| format!("reading {}", path.display())),
    }
}

/// `kernel/net/8021q/8021q.ko.xz` is the module `8021q`; other files are none.
fn module_name(path: &Path) -> Option<String> {
    let (name, compression) = path.file_name()?.to_str()?.split_once(".ko")?;
    matches!(compression, "" | ".xz").then(|| canonical(name))
}

/// A file may say `-` where the kernel says `_`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, depends: &str) -> Module {
        let bytes = format!("\u{7f}ELF\0license=GPL\0depends={depends}\0name={name}\0").into_bytes();
        Module { name: name.to_owned(), bytes }
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let load = |name: &str| match name {
            "bonding" => Ok(Some(module(name, "tls,ip-tables"))),
            "tls" => Ok(Some(module(name, "crypto"))),
            "ip_tables" => Ok(Some(module(name, "crypto,tls"))),
            "crypto" => Ok(Some(module(name, ""))),
            "built_in" => Ok(None),
            _ => bail!("no {name}"),
        };
        let mut ordered = Vec::new();
        for name in ["built_in", "bonding", "tls"] {
            visit(name, &load, &mut ordered).unwrap();
        }
        let names: Vec<_> = ordered.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["crypto", "tls", "ip_tables", "bonding"]);
        assert!(visit("absent", &load, &mut ordered).is_err());
    }

    #[test]
    fn names_are_those_of_the_kernel() {
        let name = |path: &str| module_name(Path::new(path));
        assert_eq!(name("kernel/net/cls-bpf.ko"), Some("cls_bpf".to_owned()));
        assert_eq!(name("kernel/drivers/net/veth.ko.xz"), Some("veth".to_owned()));
        assert_eq!(name("modules.order"), None);
        assert_eq!(name("kernel/x.ko.sig"), None);
    }
}
