//! The configuration: one TOML file, parsed into a checked [`model`], or refused with all of its mistakes at once.

mod checked;
mod declaration;
mod difference;
mod example;
mod files;
mod hints;
mod keys;
mod leaf;
pub mod model;
mod raw;
mod report;
mod syntax;
#[cfg(test)]
mod tests;

use std::path::Path;

use toml::de::DeTable;

pub use difference::{Difference, Effect, differences};
pub use example::{example, reference};
pub use hints::hints;
pub use model::Config;
pub use report::{Mistake, Position, Report};

use checked::Checker;
use files::FileUse;
use keys::{Place, Reader, Section as _};
use report::Mistakes;

/// Reads a file, and looks at the files that it names.
pub fn load(path: &Path) -> Result<Config, Report> {
    let name = path.display().to_string();
    let unreadable = |error: &dyn std::fmt::Display| {
        let help = "give the path of a file that xvip may read; deploy/xvip.example.toml is one to start from";
        Report::unreadable(&name, format!("cannot be read: {error}"), help)
    };
    let bytes = files::read(path).map_err(|error| unreadable(&error))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let (valid, broken) = error.as_bytes().split_at(error.utf8_error().valid_up_to());
        let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
        unreadable(&format!(
            "line {line} is not UTF-8 text (byte {:#04x})",
            broken.first().copied().unwrap_or_default()
        ))
    })?;
    check(&text, &name)
}

/// The same for a text that was read already; `source_name` stands for it in the report.
pub fn check(text: &str, source_name: &str) -> Result<Config, Report> {
    let Reading { config, mut mistakes, files } = read(text);
    files::check(&files, &mut mistakes);
    conclude(config, mistakes, source_name, text)
}

/// The key in a file of `[vrrp.hmac]` or `[sync]`: 32 to 64 bytes.
///
/// # Errors
/// What keeps the file from being one, in words that follow its name.
pub fn shared_key(path: &Path) -> Result<Vec<u8>, String> {
    files::shared_key(&files::read(path).map_err(|error| format!("cannot be read: {error}"))?)
}

/// Reads a text. `source_name` stands for it in the report. Touches nothing else: files that the text names may not exist.
pub fn parse(text: &str, source_name: &str) -> Result<Config, Report> {
    let Reading { config, mistakes, .. } = read(text);
    conclude(config, mistakes, source_name, text)
}

struct Reading {
    config: Option<Config>,
    mistakes: Mistakes,
    files: Vec<FileUse>,
}

fn read(text: &str) -> Reading {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { mistakes: Mistakes::default(), root: &raw::File::DECLARATION };
    syntax::report(text, errors, &mut reader.mistakes);
    let raw = raw::File::read(root.get_ref(), Place::root(), &mut reader);
    let mut mistakes = reader.mistakes;
    let mut checker = Checker { text, mistakes: &mut mistakes, files: Vec::new() };
    let config = checker.config(raw);
    let files = checker.files;
    Reading { config, mistakes, files }
}

fn conclude(config: Option<Config>, mistakes: Mistakes, source_name: &str, text: &str) -> Result<Config, Report> {
    match mistakes.into_report(source_name, text) {
        Some(report) => Err(report),
        None => Ok(config.expect("a file without mistakes has every field")),
    }
}
