//! Records the frames of a switch port to a file that tcpdump and Wireshark read.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{SystemTime, UNIX_EPOCH},
};

use super::Link;

/// Every protocol, both directions.
pub(super) const ALL: u16 = libc::ETH_P_ALL as u16;
/// The longest frame kept whole; VRRP's are far shorter.
const LONGEST: usize = 2048;

/// Records until it is finished or dropped.
#[derive(Debug)]
pub struct Capture {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Capture {
    /// Keeps the frames that `wanted` picks.
    pub(super) fn start(link: Link, path: &Path, wanted: fn(&[u8]) -> bool) -> io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        // pcap with microseconds, version 2.4, Ethernet.
        for word in [0xa1b2_c3d4_u32, 4 << 16 | 2, 0, 0, LONGEST as u32, 1] {
            file.write_all(&word.to_ne_bytes())?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let record = move || {
            let mut frame = [0; LONGEST];
            while !stopped.load(Ordering::Relaxed) {
                if let Some((length, at)) = link.receive(&mut frame)?
                    && wanted(&frame[..length])
                {
                    write(&mut file, &frame[..length], at)?;
                }
            }
            file.flush()
        };
        Ok(Self { path: path.to_owned(), stop, thread: Some(thread::spawn(record)) })
    }

    /// Stops, and gives the file.
    pub fn finish(mut self) -> io::Result<PathBuf> {
        self.end()?;
        Ok(self.path.clone())
    }

    fn end(&mut self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take();
        thread.map_or(Ok(()), |thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("the recorder panicked"))))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("recording {}: {error}", self.path.display());
        }
    }
}

fn write(file: &mut impl Write, frame: &[u8], at: SystemTime) -> io::Result<()> {
    let time = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let length = frame.len() as u32;
    for word in [time.as_secs() as u32, time.subsec_micros(), length, length] {
        file.write_all(&word.to_ne_bytes())?;
    }
    file.write_all(frame)
}
