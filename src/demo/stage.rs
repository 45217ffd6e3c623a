//! Where the demo speaks: on a terminal, a table that stays in place with the narration scrolling above it; anywhere
//! else, lines, and the table once in a while.
//!
//! The narration is ordinary output, so it can be scrolled back to and is still there when the demo has ended. Only the
//! table is drawn over: the cursor goes up as many lines as were drawn and everything below is cleared.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the table is printed where it cannot be drawn over.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(8);
/// What a terminal is taken for that does not say how large it is.
const USUAL_SIZE: (usize, usize) = (80, 24);

/// The standard output, in turns: narration and table come from different tasks.
pub(super) struct Stage {
    started: Instant,
    terminal: bool,
    // Guards the output and what is on it.
    drawn: Mutex<Drawn>,
}

#[derive(Debug, Default)]
struct Drawn {
    /// The table as it stands at the bottom of the terminal.
    table: Vec<String>,
    /// When the table was last printed among the lines.
    printed: Option<Instant>,
}

impl Stage {
    /// On the standard output.
    pub(super) fn open() -> Self {
        Self {
            started: Instant::now(),
            terminal: std::io::stdout().is_terminal(),
            drawn: Mutex::default(),
        }
    }

    /// Since the demo started.
    pub(super) fn running(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether the table is drawn in place, and in colours.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// How wide the table may be.
    pub(super) fn width(&self) -> usize {
        if self.terminal { size().0 } else { 120 }
    }

    /// One line of the story, with the time.
    pub(super) fn say(&self, line: &str) {
        let seconds = self.running().as_secs_f64();
        self.print(&format!("[{seconds:5.1}s] {line}"));
    }

    /// Lines as they are.
    pub(super) fn print(&self, text: &str) {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        let output = if self.terminal {
            let table = std::mem::take(&mut drawn.table);
            let output = format!("{}{text}\n{}", over(table.len()), joined(&table));
            drawn.table = table;
            output
        } else {
            format!("{text}\n")
        };
        write(&output);
    }

    /// The table as it is now.
    pub(super) fn show(&self, mut table: Vec<String>) {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.terminal {
            // What does not fit cannot be drawn over.
            table.truncate(size().1.saturating_sub(1));
            write(&format!("{}{}", over(drawn.table.len()), joined(&table)));
            drawn.table = table;
            return;
        }
        let now = Instant::now();
        let due = drawn
            .printed
            .is_none_or(|at| now.duration_since(at) >= SNAPSHOT_EVERY);
        if due {
            drawn.printed = Some(now);
            write(&joined(&table));
        }
    }

    /// Leaves the last table where it is, as ordinary output.
    pub(super) fn close(&self) {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        drawn.table.clear();
    }
}

/// Back to the first of the lines drawn last, and everything from there on cleared.
fn over(lines: usize) -> String {
    if lines == 0 {
        String::new()
    } else {
        format!("\x1b[{lines}A\r\x1b[J")
    }
}

fn joined(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn size() -> (usize, usize) {
    rustix::termios::tcgetwinsize(std::io::stdout())
        .ok()
        .filter(|size| size.ws_col > 0 && size.ws_row > 0)
        .map_or(USUAL_SIZE, |size| (size.ws_col.into(), size.ws_row.into()))
}

/// In one piece. Whoever closed the other end (`weft demo | head`) has seen enough: that is no error of ours.
fn write(text: &str) {
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(text.as_bytes());
    let _ = output.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_drawn_over_where_nothing_was_drawn() {
        assert_eq!(over(0), "");
        assert_eq!(over(3), "\x1b[3A\r\x1b[J");
    }
}
