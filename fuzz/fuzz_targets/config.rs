//! Any text is either a configuration or a report of its mistakes, and the report can be printed.

#![no_main]

use lb_userspace::config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(report) = config::parse(text, "fuzz.toml") {
        assert!(!report.to_string().is_empty());
    }
});
