//! Debian's cloud kernels, fetched as packages and unpacked below `target/vm`: nothing is installed on this machine.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use super::output;

/// A kernel series that xvip is tested on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Series {
    V6_1,
    V6_12,
}

impl Series {
    /// Packages that depend on the newest kernel of a series, on one Debian release or another.
    const fn metapackages(self) -> &'static [&'static str] {
        match self {
            Self::V6_1 => &["linux-image-6.1-cloud-amd64", "linux-image-cloud-amd64"],
            Self::V6_12 => &["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"],
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        })
    }
}

/// A kernel that is ready to boot.
#[derive(Debug)]
pub(super) struct Kernel {
    /// What `uname -r` says inside.
    pub(super) release: String,
    pub(super) image: PathBuf,
    /// Holds `kernel/` and `modules.builtin`.
    pub(super) modules: PathBuf,
}

/// The newest kernel of a series that apt knows, or else the one whose package was put into `cache/deb` by hand.
///
/// # Errors
/// When there is neither, or when downloading or unpacking fails.
pub(super) fn fetch(series: Series, cache: &Path) -> anyhow::Result<Kernel> {
    let packages = cache.join("deb");
    fs::create_dir_all(&packages).with_context(|| format!("creating {}", packages.display()))?;
    let file = match newest(series) {
        Some((package, version)) => download(&package, &version, &packages)?,
        None => by_hand(series, &packages)?,
    };
    unpack(&file, cache)
}

/// Name and version of the real package behind the first metapackage of the series that apt knows.
fn newest(series: Series) -> Option<(String, String)> {
    series.metapackages().iter().find_map(|metapackage| {
        // Another distribution has no apt-cache, or one that knows no such package: both are "unknown".
        let record = output(Command::new("apt-cache").args(["show", "--no-all-versions", metapackage])).ok()?;
        dependency(&String::from_utf8_lossy(&record), series)
    })
}

/// The kernel of this series in the `Depends` field of a package record: `linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)`.
fn dependency(record: &str, series: Series) -> Option<(String, String)> {
    let depends = record.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    let prefix = format!("linux-image-{series}.");
    depends.split(',').find_map(|alternative| {
        let (package, version) = alternative.trim().split_once(" (= ")?;
        let wanted = package.starts_with(&prefix) && package.ends_with("-cloud-amd64");
        wanted.then(|| (package.to_owned(), version.trim_end_matches(')').to_owned()))
    })
}

fn download(package: &str, version: &str, packages: &Path) -> anyhow::Result<PathBuf> {
    let file = packages.join(file_name(package, version));
    if !file.exists() {
        println!("vm-test: downloading {package} {version}");
        // apt-get checks the signature chain and renames the file into place when it is complete.
        output(Command::new("apt-get").args(["download", &format!("{package}={version}")]).current_dir(packages))
            .context("fetching a kernel; if apt's lists are old, `sudo apt-get update` renews them")?;
    }
    Ok(file)
}

/// What `apt-get download` names a package's file: an epoch's colon is escaped.
fn file_name(package: &str, version: &str) -> String {
    format!("{package}_{}_amd64.deb", version.replace(':', "%3a"))
}

fn by_hand(series: Series, packages: &Path) -> anyhow::Result<PathBuf> {
    let prefix = format!("linux-image-{series}.");
    let found = fs::read_dir(packages)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    match found.filter(|name| name.starts_with(&prefix) && name.ends_with("_amd64.deb")).max() {
        Some(name) => Ok(packages.join(name)),
        None => bail!(
            "apt knows no Debian cloud kernel {series} here. On Debian 12 with the security suite among its sources, \
             `sudo apt-get update` is enough. Elsewhere take a package {prefix}*-cloud-amd64 from \
             https://packages.debian.org, put its .deb into {} and start again: it is unpacked there, never installed",
            packages.display(),
        ),
    }
}

/// Unpacks a package once; the directory appears under its final name only when it is complete.
fn unpack(file: &Path, cache: &Path) -> anyhow::Result<Kernel> {
    let name = file.file_stem().context("a package without a name")?;
    let root = cache.join(name);
    if !root.exists() {
        let partial = cache.join("unpacking");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        output(Command::new("dpkg-deb").arg("-x").arg(file).arg(&partial))?;
        fs::rename(&partial, &root)?;
    }
    let release = release(&root).with_context(|| format!("no kernel in {}", file.display()))?;
    // Debian's packages may say lib or usr/lib; both are looked at.
    let modules = ["usr/lib", "lib"].map(|lib| root.join(lib).join("modules").join(&release));
    let modules = modules.into_iter().find(|path| path.exists()).context("a kernel package without modules")?;
    Ok(Kernel { image: root.join(format!("boot/vmlinuz-{release}")), modules, release })
}

fn release(root: &Path) -> Option<String> {
    let mut files = fs::read_dir(root.join("boot")).ok()?;
    files.find_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_package_is_found_through_a_dependency() {
        let record = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\n\
                      Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nSection: kernel\n";
        let found = Some(("linux-image-6.1.0-56-cloud-amd64".to_owned(), "6.1.192-2".to_owned()));
        assert_eq!(dependency(record, Series::V6_1), found);
        // On the next Debian the same name leads to another series: 6.1 must not match 6.12.
        let record = "Depends: linux-image-6.12.9-cloud-amd64 (= 6.12.9-1), other\n";
        assert_eq!(dependency(record, Series::V6_1), None);
        assert!(dependency(record, Series::V6_12).is_some());
        assert_eq!(dependency("Package: nothing\n", Series::V6_1), None);
    }

    #[test]
    fn file_names_are_those_of_apt() {
        assert_eq!(file_name("linux", "1:6.1-2~deb12u1"), "linux_1%3a6.1-2~deb12u1_amd64.deb");
    }
}
