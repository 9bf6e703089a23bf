//! The log: to standard error, in journald's way if journald reads it.

use std::io::Write as _;

use env_logger::{Builder, Env, Target};
use log::Level;

/// Starts logging, at the level in `XVIP_LOG` (error, warn, info, debug, trace; info if unset).
pub(super) fn start() {
    // Set by systemd for what it connects to the journal (systemd.exec(5)).
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let mut builder = Builder::from_env(Env::new().filter_or("XVIP_LOG", "info"));
    builder.target(Target::Stderr).format(move |out, record| {
        if journal {
            // A level in front of each line (sd-daemon(3)); the journal has the time.
            writeln!(out, "<{}>{}", severity(record.level()), record.args())
        } else {
            let now = humantime::format_rfc3339_millis(std::time::SystemTime::now());
            writeln!(out, "{now} {:5} {}", record.level(), record.args())
        }
    });
    builder.init();
}

/// syslog(3)'s number of a level.
const fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}
