//! The initramfs of a guest: its init, the shared libraries of that, kernel modules, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::kernel::Kernel;
use super::{modules, output};

/// What the data plane attaches to: veth pairs, and TC hooks where there is no TCX (before 6.6).
const MODULES: [&str; 3] = ["veth", "sch_ingress", "cls_bpf"];

/// Writes the archive to `to`.
///
/// # Errors
/// When a library or module cannot be found or read, or the archive not be written.
pub(super) fn build(kernel: &Kernel, init: &Path, to: &Path) -> anyhow::Result<()> {
    let mut archive = Archive::default();
    // Without it the kernel gives init no stdout. 5:1 is the console whichever device that is.
    archive.device("dev/console", 5, 1);
    for mount_point in ["proc", "sys"] {
        archive.directory(mount_point);
    }
    archive.file("init", &read(init)?);
    for library in libraries(init)? {
        archive.file(&inside(&library), &read(&library)?);
    }
    let mut order = String::new();
    for module in modules::resolve(&kernel.modules, &MODULES)? {
        let path = format!("modules/{}.ko", module.name);
        archive.file(&path, &module.bytes);
        order.push_str(&format!("/{path}\n"));
    }
    archive.file("modules/order", order.as_bytes());
    fs::write(to, archive.finish()).with_context(|| format!("writing {}", to.display()))
}

/// The loader and the libraries of a program, at the paths where its loader will look for them.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    Ok(loaded(&String::from_utf8_lossy(&output(Command::new("ldd").arg(program))?)))
}

/// Paths in what ldd prints: `libc.so.6 => /lib/libc.so.6 (0x7f..)`, `/lib64/ld.so (0x7f..)`; the vDSO has none.
fn loaded(ldd: &str) -> Vec<PathBuf> {
    let words = ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from).collect()
}

fn inside(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// A cpio archive in the "newc" format, the one that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
/// Everything belongs to root, whoever builds it.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    directories: Vec<String>,
    entries: u32,
}

impl Archive {
    const DIRECTORY: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    const CONSOLE: u32 = 0o020_600;

    fn directory(&mut self, path: &str) {
        if path.is_empty() || self.directories.iter().any(|known| known == path) {
            return;
        }
        self.parents(path);
        self.directories.push(path.to_owned());
        self.entry(path, Self::DIRECTORY, (0, 0), &[]);
    }

    fn file(&mut self, path: &str, content: &[u8]) {
        self.parents(path);
        self.entry(path, Self::PROGRAM, (0, 0), content);
    }

    fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents(path);
        self.entry(path, Self::CONSOLE, (major, minor), &[]);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    /// The kernel makes no directory that has no entry of its own.
    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.entries += 1;
        let links = 1 + u32::from(mode == Self::DIRECTORY);
        let size = u32::try_from(content.len()).expect("a file of an initramfs is below 4 GiB");
        let name = u32::try_from(path.len() + 1).expect("a path is short");
        // Inode, mode, uid, gid, links, mtime, size, device of the file system, device of the node, length of the name, checksum.
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, major, minor, name, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Headers and contents begin at multiples of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_newc_to_the_byte() {
        let mut archive = Archive::default();
        archive.file("a/b", b"hello");
        let expected: &[&[u8]] = &[
            b"070701",
            b"00000001000041ed000000000000000000000002000000000000000000000000000000000000000000000000",
            b"0000000200000000",
            b"a\0",
            b"070701",
            b"00000002000081ed000000000000000000000001000000000000000500000000000000000000000000000000",
            b"0000000400000000",
            b"a/b\0\0\0",
            b"hello\0\0\0",
            b"070701",
            b"00000003000000000000000000000000000000010000000000000000000000000000000000000000000000000000000b00000000",
            b"TRAILER!!!\0\0\0\0",
        ];
        assert_eq!(archive.finish(), expected.concat());
    }

    #[test]
    fn a_directory_is_written_once_and_before_what_it_holds() {
        let mut archive = Archive::default();
        archive.file("lib/x/one", b"");
        archive.file("lib/x/two", b"");
        archive.device("dev/console", 5, 1);
        assert_eq!(archive.directories, ["lib", "lib/x", "dev"]);
        assert_eq!(archive.entries, 6);
        let bytes = archive.finish();
        assert!(bytes.windows(16).any(|window| window == b"0000000500000001"), "no device 5:1");
    }

    #[test]
    fn paths_are_taken_from_ldd() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007fb7)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007fb8)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(loaded(ldd), expected.map(PathBuf::from));
        assert!(loaded("\tstatically linked\n").is_empty());
    }
}
