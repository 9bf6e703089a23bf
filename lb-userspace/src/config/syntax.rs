//! What the TOML parser says, in the words of this program and with a remedy.

use toml::de::Error;

use super::report::{Mistakes, Span, line_start};

pub(super) fn report(text: &str, errors: Vec<Error>, mistakes: &mut Mistakes) {
    for error in errors {
        let at = error.span().unwrap_or(0..0);
        if error.message() == "duplicate key" {
            // The rest of the file can be trusted: this alone is no broken syntax.
            let name = text.get(at.clone()).unwrap_or_default();
            mistakes.add(&at, format!("`{name}` is given twice"), "leave out one of the two");
            continue;
        }
        match bare_value(text, at.start) {
            Some((key, "", at)) => {
                mistakes.add_syntax(
                    &at,
                    format!("`{key}` has no value"),
                    format!("write one after the `=`, or leave out `{key}`"),
                );
            }
            Some((key, value, at)) => mistakes.add_syntax(
                &at,
                format!("`{value}` is not a number, true or false, and text must be in quotes"),
                format!("if it is meant as text, write `{key} = \"{value}\"`"),
            ),
            None => mistakes.add_syntax(
                &at,
                error.message().trim_end_matches(", expected nothing"),
                "each line is a `[section]`, a `[[section]]` that can be repeated, or `key = value`",
            ),
        }
    }
}

/// The key, the value and the value's place, if the line is a key with nothing or one bare word after it.
fn bare_value(text: &str, at: usize) -> Option<(&str, &str, Span)> {
    let begin = line_start(text, at);
    let line = text[begin..].lines().next()?;
    let (key, rest) = line.split_once('=')?;
    let value = rest.split('#').next()?.trim();
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '/' | '-' | '_');
    let indent = rest.len() - rest.trim_start().len();
    let start = begin + key.len() + 1 + if value.is_empty() { 0 } else { indent };
    let key = key.trim();
    (key.chars().all(bare) && value.chars().all(bare)).then_some((key, value, start..start + value.len()))
}
