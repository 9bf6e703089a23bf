//! The picture: redrawn in place on a terminal, one line a second elsewhere.

use std::{
    io::{self, IsTerminal, Write as _},
    time::{Duration, Instant},
};

use lb_userspace::{admin::status::state_name, health::State};

use super::live::Recent;

/// Between two pictures: quick enough to look alive, slow enough to be read.
const REFRESH: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(1);
/// Characters of a full bar.
const BAR: usize = 30;
/// Lets no line wrap, which would spoil the count of lines; and hides the cursor.
const BEGIN: &str = "\x1b[?7l\x1b[?25l";
const END: &str = "\x1b[?7h\x1b[?25h";
const CLEAR_LINE: &str = "\x1b[K";

/// What there is to see at one moment.
#[derive(Debug)]
pub(super) struct Picture {
    pub(super) title: String,
    pub(super) rows: Vec<Row>,
    pub(super) footer: String,
}

/// One backend.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) state: State,
    pub(super) recent: Recent,
}

/// Standard output. Whoever has closed it does not read: errors of writing are nobody's business.
#[derive(Debug)]
pub(super) struct Screen {
    began: Instant,
    /// Redraws in place.
    live: bool,
    /// Lines of the picture that stands there now.
    drawn: usize,
    last: Option<Instant>,
    story: Vec<String>,
}

impl Screen {
    pub(super) fn new(check: bool) -> Self {
        let live = !check && io::stdout().is_terminal();
        Self { began: Instant::now(), live, drawn: 0, last: None, story: Vec::new() }
    }

    /// Adds a line to the story, with the time.
    pub(super) fn tell(&mut self, text: &str) {
        let line = format!("{:6.1} s  {text}", self.began.elapsed().as_secs_f64());
        if self.drawn == 0 {
            self.print(&line);
        } else {
            self.story.push(line);
            self.last = None;
        }
    }

    /// Shows the picture, unless the last one is fresh.
    pub(super) fn show(&mut self, picture: &Picture) {
        let every = if self.live { REFRESH } else { LINE_EVERY };
        if self.last.is_some_and(|last| last.elapsed() < every) {
            return;
        }
        self.last = Some(Instant::now());
        if self.live {
            self.redraw(picture);
        } else {
            let line = format!("{:6.1} s  {}", self.began.elapsed().as_secs_f64(), picture.line());
            self.print(&line);
        }
    }

    /// Leaves the last picture where it is and goes on below it.
    pub(super) fn settle(&mut self, picture: &Picture) {
        if self.live {
            self.redraw(picture);
        }
        self.leave();
    }

    pub(super) fn print(&self, text: &str) {
        let _ = writeln!(io::stdout(), "{text}");
    }

    fn redraw(&mut self, picture: &Picture) {
        let lines: Vec<String> = picture.lines().into_iter().chain(self.story.iter().cloned()).collect();
        let mut text = BEGIN.to_owned();
        if self.drawn > 0 {
            text += &format!("\x1b[{}A", self.drawn);
        }
        for line in &lines {
            text += &format!("\r{line}{CLEAR_LINE}\n");
        }
        self.drawn = lines.len();
        let mut out = io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    fn leave(&mut self) {
        if self.drawn > 0 {
            self.drawn = 0;
            let mut out = io::stdout().lock();
            let _ = out.write_all(END.as_bytes()).and_then(|()| out.flush());
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Picture {
    fn answered(&self) -> usize {
        self.rows.iter().map(|row| row.recent.answered).sum()
    }

    /// For a terminal of 80 columns.
    fn lines(&self) -> Vec<String> {
        let all = self.answered().max(1);
        let mut lines = vec![String::new(), format!("  \x1b[1m{}\x1b[0m", self.title), String::new()];
        lines.extend(self.rows.iter().map(|row| row.line(all)));
        lines.extend([String::new(), format!("  \x1b[2m{}\x1b[0m", self.footer), String::new()]);
        lines
    }

    /// The same in one line without colours.
    fn line(&self) -> String {
        let row = |row: &Row| {
            let failed = if row.recent.failed > 0 { format!(", {} failed", row.recent.failed) } else { String::new() };
            format!("{} {} {}/s{failed}", row.name, state_name(row.state), row.recent.answered)
        };
        self.rows.iter().map(row).collect::<Vec<_>>().join("   ")
    }
}

impl Row {
    fn line(&self, all: usize) -> String {
        let colour = match self.state {
            State::Up => 32,
            State::Draining => 33,
            State::Down => 31,
        };
        let Recent { answered, failed } = self.recent;
        let failures = if failed > 0 { format!("  \x1b[31m{failed} failed\x1b[0m") } else { String::new() };
        format!(
            "  {:10}\x1b[{colour}m{:9}\x1b[0m\x1b[36m{}\x1b[0m {:3} % {answered:4}/s{failures}",
            self.name,
            state_name(self.state),
            bar(answered, all),
            (answered * 100 + all / 2) / all,
        )
    }
}

/// A share as a bar of [`BAR`] characters, drawn to an eighth of one.
fn bar(part: usize, all: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = part * BAR * 8 / all.max(1);
    let bar = "█".repeat(eighths / 8) + EIGHTHS[eighths % 8];
    format!("{bar:BAR$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_share() {
        assert_eq!(bar(0, 9).trim(), "");
        assert_eq!(bar(1, 2).trim(), "█".repeat(15));
        assert_eq!(bar(1, 16).trim(), "█▉");
        assert_eq!(bar(3, 3), "█".repeat(BAR));
        assert!([0, 1, 5, 9].iter().all(|part| bar(*part, 9).chars().count() == BAR));
    }

    #[test]
    fn the_widest_row_fits_80_columns() {
        let row = Row {
            name: "master-2".to_owned(),
            state: State::Draining,
            recent: Recent { answered: 9999, failed: 9999 },
        };
        let mut visible = row.line(9999);
        for code in ["\x1b[33m", "\x1b[36m", "\x1b[31m", "\x1b[0m"] {
            visible = visible.replace(code, "");
        }
        assert!(visible.chars().count() <= 80, "{visible}");
        assert!(visible.contains("draining") && visible.contains("100 %") && visible.contains("9999 failed"));
    }
}
