//! What is wrong with a file: every mistake at its line and column, each with its remedy.

use std::{fmt, ops::Range};

use thiserror::Error;

/// Bytes of the source text.
pub(super) type Span = Range<usize>;

/// All the mistakes of one file, in the order of the file; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct Report {
    source_name: String,
    mistakes: Vec<Mistake>,
}

/// One mistake and how to put it right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// `None` where there is no text to point at: the file could not be read.
    pub position: Option<Position>,
    pub message: String,
    pub help: String,
    excerpt: Excerpt,
}

/// Both count from 1; columns are characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

/// The part of the line to show, and what to underline in it (characters).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Excerpt {
    line: String,
    indent: usize,
    width: usize,
}

impl Report {
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }

    /// The first mistake, in one line.
    pub fn first(&self) -> String {
        let source = &self.source_name;
        match self.mistakes.first() {
            Some(Mistake { position: Some(Position { line, column }), message, .. }) => {
                format!("{source}:{line}:{column}: {message}")
            }
            Some(Mistake { message, .. }) => format!("{source}: {message}"),
            None => source.clone(),
        }
    }

    /// A file that could not even be read as text.
    pub(super) fn unreadable(source_name: &str, message: String, help: &str) -> Self {
        let mistake = Mistake { position: None, message, help: help.to_owned(), excerpt: Excerpt::default() };
        Self { source_name: source_name.to_owned(), mistakes: vec![mistake] }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Mistake { position, message, help, excerpt } in &self.mistakes {
            match position {
                None => writeln!(f, "{}: {message}", self.source_name)?,
                Some(Position { line, column }) => {
                    let number = line.to_string();
                    let gutter = " ".repeat(number.len());
                    let underline = "^".repeat(excerpt.width);
                    writeln!(f, "{}:{line}:{column}: {message}", self.source_name)?;
                    writeln!(f, "{gutter} |")?;
                    writeln!(f, "{number} | {}", excerpt.line)?;
                    writeln!(f, "{gutter} | {}{underline}", " ".repeat(excerpt.indent))?;
                }
            }
            writeln!(f, "help: {help}\n")?;
        }
        match self.mistakes.len() {
            1 => write!(f, "1 mistake in {}", self.source_name),
            count => write!(f, "{count} mistakes in {}", self.source_name),
        }
    }
}

/// Why a mistake is one, as far as it decides what else is worth saying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Syntax,
    Missing,
    Meaning,
}

/// Collects mistakes while a file is read.
#[derive(Debug, Default)]
pub(super) struct Mistakes {
    found: Vec<(Span, Kind, String, String)>,
}

impl Mistakes {
    pub(super) fn add(&mut self, at: &Span, message: impl Into<String>, help: impl Into<String>) {
        self.found.push((at.clone(), Kind::Meaning, message.into(), help.into()));
    }

    /// Something the file ought to hold and does not.
    pub(super) fn add_missing(&mut self, at: &Span, message: impl Into<String>, help: impl Into<String>) {
        self.found.push((at.clone(), Kind::Missing, message.into(), help.into()));
    }

    /// Text that could not be read for what it was meant to be.
    pub(super) fn add_syntax(&mut self, at: &Span, message: impl Into<String>, help: impl Into<String>) {
        self.found.push((at.clone(), Kind::Syntax, message.into(), help.into()));
    }

    /// `None` when there was nothing to report.
    ///
    /// The reader goes on after a syntax error with what it could save. What it then thinks missing may only be lost, and what
    /// it says of the broken line itself is noise: neither is kept.
    pub(super) fn into_report(self, source_name: &str, text: &str) -> Option<Report> {
        let broken: Vec<usize> = self
            .found
            .iter()
            .filter(|found| found.1 == Kind::Syntax)
            .map(|found| line_start(text, found.0.start))
            .collect();
        let mut kept: Vec<_> = self
            .found
            .into_iter()
            .filter(|(at, kind, ..)| match kind {
                Kind::Syntax => true,
                Kind::Missing => broken.is_empty(),
                Kind::Meaning => !broken.contains(&line_start(text, at.start)),
            })
            .collect();
        kept.sort_by_key(|(at, ..)| at.start);
        kept.dedup_by(|later, earlier| {
            later.1 == Kind::Syntax
                && earlier.1 == Kind::Syntax
                && line_start(text, later.0.start) == line_start(text, earlier.0.start)
        });
        let mistakes: Vec<Mistake> = kept
            .into_iter()
            .map(|(at, _, message, help)| {
                let (position, excerpt) = locate(text, &at);
                Mistake { position: Some(position), message: printable(&message), help: printable(&help), excerpt }
            })
            .collect();
        (!mistakes.is_empty()).then(|| Report { source_name: source_name.to_owned(), mistakes })
    }
}

/// The line (from 1) of a span, for messages that name another place.
pub(super) fn line_of(text: &str, at: &Span) -> usize {
    text.as_bytes()[..at.start.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// Where the line of a byte begins. `at` may be out of bounds or inside a character: then it is the nearest place before.
pub(super) fn line_start(text: &str, at: usize) -> usize {
    let at = (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

fn locate(text: &str, at: &Span) -> (Position, Excerpt) {
    /// Longer lines are cut, so that a stray binary does not fill the terminal.
    const SHOWN: usize = 160;
    const BEFORE: usize = 80;

    let begin = line_start(text, at.start);
    let line = text[begin..].split('\n').next().unwrap_or_default().trim_end_matches('\r');
    let before = line.char_indices().take_while(|(offset, _)| begin + offset < at.start).count();
    let length = line.chars().count();
    let marked = line.char_indices().filter(|(offset, _)| at.contains(&(begin + offset))).count().max(1);
    let cut = if length > SHOWN { before.saturating_sub(BEFORE) } else { 0 };
    let indent = before - cut;
    let excerpt = Excerpt {
        line: printable(&line.chars().skip(cut).take(SHOWN).collect::<String>()),
        indent,
        width: marked.min(SHOWN.saturating_sub(indent)).max(1),
    };
    (Position { line: line_of(text, at), column: before + 1 }, excerpt)
}

/// A file must not be able to drive the terminal it is reported on; every character stays one character wide for the caret.
fn printable(text: &str) -> String {
    text.chars()
        .map(|character| match character {
            '\t' => ' ',
            control if control.is_control() => char::REPLACEMENT_CHARACTER,
            other => other,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str, at: Span) -> String {
        let mut mistakes = Mistakes::default();
        mistakes.add(&at, "wrong", "put it right");
        mistakes.into_report("f.toml", text).expect("one mistake").to_string()
    }

    #[test]
    fn a_mistake_shows_its_line_and_underlines_its_span() {
        assert_eq!(
            report("a = 1\n\tportä = \"x\"\n", 16..19),
            "f.toml:2:10: wrong\n  |\n2 |  portä = \"x\"\n  |          ^^^\nhelp: put it right\n\n1 mistake in f.toml"
        );
    }

    #[test]
    fn the_end_of_the_text_and_what_lies_beyond_can_be_pointed_at() {
        for at in [5..5, 5..9, 90..99] {
            assert!(report("a = 1", at).starts_with("f.toml:1:6: wrong\n  |\n1 | a = 1\n  |      ^\n"));
        }
        assert!(report("", 0..0).starts_with("f.toml:1:1: wrong"));
        assert!(report("é = 1", 1..1).starts_with("f.toml:1:2: wrong"), "inside a character");
    }

    #[test]
    fn long_lines_are_cut_around_the_mistake() {
        let shown = report(&format!("{}!{}", "x".repeat(5000), "y".repeat(5000)), 5000..5001);
        assert!(shown.starts_with("f.toml:1:5001: wrong"));
        assert!(shown.contains(&format!("1 | {}!{}\n", "x".repeat(80), "y".repeat(79))), "{shown}");
        assert!(shown.contains(&format!("  | {}^\n", " ".repeat(80))), "{shown}");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert!(!report("a = \"\u{1b}[31m\"\r\n", 4..5).contains(['\u{1b}', '\r']));
    }

    #[test]
    fn after_a_syntax_error_only_what_is_certain_is_said() {
        let mut mistakes = Mistakes::default();
        mistakes.add(&(8..9), "noise on the broken line", "");
        mistakes.add(&(0..1), "certain", "");
        mistakes.add_missing(&(0..1), "perhaps only lost", "");
        mistakes.add_syntax(&(6..7), "broken", "");
        mistakes.add_syntax(&(9..10), "more of the same", "");
        let report = mistakes.into_report("f", "a = 1\nb = =\n").expect("mistakes");
        let messages: Vec<_> = report.mistakes().iter().map(|mistake| mistake.message.as_str()).collect();
        assert_eq!(messages, ["certain", "broken"]);
    }
}
