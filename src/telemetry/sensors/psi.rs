//! The kernel's pressure stall information (PSI): the share of time in which tasks waited for a resource.
//!
//! It is read for the host, not for our control group, so that it shows when other programs wait. A stock Raspberry
//! Pi OS does not have it: `psi=1` on the kernel's command line enables it. Deliberately knows no load. Source: the
//! kernel's Documentation/accounting/psi.rst.

use super::sysfs::Root;
use crate::protocol::Pressure;

/// Reads the pressure from the file at `path`.
pub(super) fn read(root: &Root, path: &str) -> Option<Pressure> {
    parse(&root.text(path)?)
}

fn parse(text: &str) -> Option<Pressure> {
    Some(Pressure {
        some_10s: mean(text, "some", "avg10")?,
        some_60s: mean(text, "some", "avg60")?,
        full_10s: mean(text, "full", "avg10"),
    })
}

/// One number of a line like `some avg10=0.12 avg60=0.05 avg300=0.01 total=12345`, in percent.
fn mean(text: &str, line: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '))?;
    let mut fields = line.split_whitespace().filter_map(|field| field.split_once('='));
    let percent: f64 = fields.find(|(found, _)| *found == name)?.1.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_are_read() {
        let text = "some avg10=12.50 avg60=3.01 avg300=0.50 total=9\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=1\n";
        let expected = Pressure { some_10s: 12.5, some_60s: 3.01, full_10s: Some(1.0) };
        assert_eq!(parse(text), Some(expected));
    }

    #[test]
    fn kernels_before_5_13_have_no_full_line_for_processors() {
        let pressure = parse("some avg10=1.00 avg60=2.00 avg300=0.00 total=1\n").expect("a pressure");
        assert_eq!(pressure.full_10s, None);
    }

    #[test]
    fn what_is_no_percentage_is_no_pressure() {
        for text in [
            "",
            "some",
            "some avg10=x avg60=1",
            "some avg10=NaN avg60=1",
            "some avg10=101 avg60=1",
            "full avg10=1",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
