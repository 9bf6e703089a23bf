//! A value read from small local files, read again when one of them changes.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// What tells one version of a file from the next: device, inode, size, and modification and change time in ns.
type Stamp = (u64, u64, u64, i64, i64, i64, i64);

#[derive(Debug, Error)]
#[error("cannot use {}: {reason}", path.display())]
pub(super) struct FileError {
    pub(super) path: PathBuf,
    pub(super) reason: String,
}

impl FileError {
    pub(super) fn new(path: &Path, reason: impl ToString) -> Self {
        Self { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// What the files at `paths` mean, according to `read`.
///
/// Files are read in place: they are small and local, and a blocking read of the page cache costs less than handing it to
/// another thread. A version that cannot be read, such as one half written, leaves the previous value in use.
pub(super) struct Watched<T> {
    paths: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T, FileError> + Send + Sync>,
    stamps: Vec<Option<Stamp>>,
    value: Option<T>,
}

impl<T> Watched<T> {
    pub(super) fn new(paths: Vec<PathBuf>, read: impl Fn() -> Result<T, FileError> + Send + Sync + 'static) -> Self {
        Self { paths, read: Box::new(read), stamps: Vec::new(), value: None }
    }

    /// Reads again where a file has changed, and returns whether the value is a new one.
    ///
    /// # Errors
    /// When no version of the files could be read so far.
    pub(super) fn refresh(&mut self) -> Result<bool, FileError> {
        let stamps: Vec<_> = self.paths.iter().map(|path| stamp(path).ok()).collect();
        if self.value.is_some() && stamps == self.stamps {
            return Ok(false);
        }
        // Taken before the reading, so that a change meanwhile is seen the next time.
        self.stamps = stamps;
        match (self.read)() {
            Ok(value) => {
                self.value = Some(value);
                Ok(true)
            }
            Err(error) if self.value.is_some() => {
                log::warn!("{error}; its previous content stays in use");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The latest value; `None` until a refresh succeeded.
    pub(super) fn value(&self) -> Option<&T> {
        self.value.as_ref()
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = fs::metadata(path)?;
    Ok((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(path: &Path) -> Watched<u32> {
        let file = path.to_owned();
        Watched::new(vec![file.clone()], move || {
            let text = fs::read_to_string(&file).map_err(|e| FileError::new(&file, e))?;
            text.trim().parse().map_err(|e| FileError::new(&file, e))
        })
    }

    #[test]
    fn follows_the_file_and_keeps_the_last_good_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        let mut watched = number(&path);
        let error = watched.refresh().unwrap_err().to_string();
        assert!(error.contains("/number: No such file"), "{error}");
        assert_eq!(watched.value(), None);

        fs::write(&path, "1").unwrap();
        assert!(watched.refresh().unwrap());
        assert_eq!(watched.value(), Some(&1));
        assert!(!watched.refresh().unwrap());

        fs::write(&path, "22").unwrap();
        assert!(watched.refresh().unwrap());
        fs::write(&path, "not a number").unwrap();
        assert!(!watched.refresh().unwrap());
        assert_eq!(watched.value(), Some(&22));
        fs::remove_file(&path).unwrap();
        assert!(!watched.refresh().unwrap());
        assert_eq!(watched.value(), Some(&22));

        // As the kubelet renews a projected token: another file under the same name.
        fs::write(dir.path().join("new"), "33").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(watched.refresh().unwrap());
        assert_eq!(watched.value(), Some(&33));
    }
}
