//! What a download shows on standard error: a bar on a terminal, otherwise a line every ten seconds.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, Instant};

/// How often the bar is drawn.
const REDRAW: Duration = Duration::from_millis(200);
/// How often a line is written where there is no terminal.
const LINE: Duration = Duration::from_secs(10);
/// The span over which the speed is a mean.
const SPEED_SPAN: Duration = Duration::from_secs(5);
const WIDTH: u64 = 24;

/// The progress of one file.
pub(super) struct DownloadProgress {
    is_terminal: bool,
    /// Whether a bar stands on the current line.
    is_drawn: bool,
    shown_at: Instant,
    speed: Speed,
}

impl DownloadProgress {
    pub fn new(now: Instant) -> Self {
        DownloadProgress {
            is_terminal: io::stderr().is_terminal(),
            is_drawn: false,
            shown_at: now,
            speed: Speed::default(),
        }
    }

    /// A line of its own, above the bar.
    pub fn line(&mut self, text: &str) {
        self.clear();
        write(&format!("{text}\n"));
    }

    pub fn show(&mut self, done: u64, total: Option<u64>, now: Instant) {
        self.speed.add(done, now);
        let pause = if self.is_terminal { REDRAW } else { LINE };
        if now.duration_since(self.shown_at) < pause && total != Some(done) {
            return;
        }
        self.shown_at = now;
        let text = text(done, total, self.speed.bytes_per_second());
        if self.is_terminal {
            self.is_drawn = true;
            write(&format!("\r{}{text}\x1b[K", total.map(|total| bar(done, total)).unwrap_or_default()));
        } else if total != Some(done) {
            write(&format!("{text}\n"));
        }
    }

    /// Removes the bar.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.is_drawn) {
            write("\r\x1b[K");
        }
    }
}

/// An error is ignored, since progress is not essential.
fn write(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

fn bar(done: u64, total: u64) -> String {
    let filled = (done.min(total) * WIDTH / total.max(1)) as usize;
    format!("[{:<width$}] ", "=".repeat(filled), width = WIDTH as usize)
}

fn text(done: u64, total: Option<u64>, speed: Option<f64>) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut text = match total {
        Some(total) => format!("{:>3} % of {:.0} MiB", done.min(total) * 100 / total.max(1), mib(total)),
        None => format!("{:.0} MiB", mib(done)),
    };
    if let Some(speed) = speed.filter(|speed| *speed >= 1.0) {
        let _ = write!(text, ", {:.1} MiB/s", speed / f64::from(1 << 20));
        if let Some(total) = total {
            let _ = write!(text, ", {} left", time(total.saturating_sub(done) as f64 / speed));
        }
    }
    text
}

fn time(seconds: f64) -> String {
    let seconds = seconds.min(359_999.0).ceil() as u64;
    match seconds / 3600 {
        0 => format!("{}:{:02}", seconds / 60, seconds % 60),
        hours => format!("{hours}:{:02}:{:02}", seconds / 60 % 60, seconds % 60),
    }
}

/// The speed over the last seconds.
#[derive(Debug, Default)]
struct Speed {
    /// Times and bytes until then, half a second apart.
    samples: std::collections::VecDeque<(Instant, u64)>,
}

impl Speed {
    fn add(&mut self, done: u64, now: Instant) {
        // After a restart of the file the speed is measured anew.
        if self.samples.back().is_some_and(|(_, before)| *before > done) {
            self.samples.clear();
        }
        let is_due = |(time, _): &(Instant, u64)| now.duration_since(*time) >= Duration::from_millis(500);
        if self.samples.back().is_none_or(is_due) {
            self.samples.push_back((now, done));
        }
        while self.samples.len() > 2
            && self.samples.front().is_some_and(|(time, _)| now.duration_since(*time) > SPEED_SPAN)
        {
            self.samples.pop_front();
        }
    }

    fn bytes_per_second(&self) -> Option<f64> {
        let ((begun, first), (ended, last)) = (self.samples.front()?, self.samples.back()?);
        let span = ended.duration_since(*begun).as_secs_f64();
        (span > 0.0).then(|| (last - first) as f64 / span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_share_size_speed_and_time_left() {
        let mib = |n: u64| n << 20;
        assert_eq!(
            text(mib(10), Some(mib(100)), Some(2.0 * 1048576.0)),
            " 10 % of 100 MiB, 2.0 MiB/s, 0:45 left"
        );
        assert_eq!(text(mib(10), None, None), "10 MiB");
        assert_eq!(text(0, Some(0), None), "  0 % of 0 MiB");
        assert_eq!(bar(mib(50), mib(100)), "[============            ] ");
        assert_eq!((time(61.2).as_str(), time(3723.0).as_str()), ("1:02", "1:02:03"));
    }

    #[test]
    fn the_speed_is_that_of_the_last_seconds() {
        let begun = Instant::now();
        let mut speed = Speed::default();
        for second in 0..20 {
            let done = if second < 10 { 0 } else { (second - 9) * 1000 };
            speed.add(done, begun + Duration::from_secs(second));
        }
        assert_eq!(speed.bytes_per_second(), Some(1000.0));
        speed.add(5, begun + Duration::from_secs(21));
        assert_eq!(speed.bytes_per_second(), None);
    }
}
