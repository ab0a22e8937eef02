//! Parses the answers of the firmware. Pure, and strict: the texts come from a closed program that changes.
//! Deliberately knows no mailbox.

/// Hexadecimal digits of a flag word, whose bits are explained in [`crate::protocol::Throttling`]; others may come
/// with a later firmware.
const MOST_DIGITS: usize = 8;

/// Plausible volts or amperes of a rail: the supply has 5 V and 5 A, a processor at 0.9 V draws 10 A.
const SANE: std::ops::RangeInclusive<f64> = 0.0..=100.0;

/// Most digits of a number; the firmware writes nine.
const MOST_FIGURES: usize = 20;

/// The flags in `throttled=0x50005`, the answer to `get_throttled`.
pub fn throttle_flags(text: &str) -> Option<u32> {
    let digits = text.trim().strip_prefix("throttled=0x")?;
    // `from_str_radix` would accept a sign.
    let sound = digits.len() <= MOST_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    sound.then(|| u32::from_str_radix(digits, 16).ok())?
}

/// The power in the answer to `pmic_read_adc`, in watts: over all rails that have both a current and a voltage.
///
/// Lines are `VDD_CORE_A current(7)=6.22421000A` and `VDD_CORE_V volt(15)=0.86173300V`; some firmware leaves out
/// the `_A` and `_V`. The numbers in brackets belong to the converter, not to the rail, and differ between
/// firmware: rails are distinguished by their names. `EXT5V` and `BATT` have a voltage only. One line that cannot
/// be parsed invalidates the whole answer: it may be truncated, and a sum of half the rails is a wrong number.
pub fn rails_watts(text: &str) -> Option<f64> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let values = lines.map(value).collect::<Option<Vec<_>>>()?;
    let is_double = |at: usize| values[..at].iter().any(|other| other.is_same(&values[at]));
    if (0..values.len()).any(is_double) {
        return None;
    }
    let volts = |name: &str| values.iter().find(|value| value.unit == Unit::Volt && value.name == name);
    let amperes = values.iter().filter(|value| value.unit == Unit::Ampere);
    let watts: Vec<f64> = amperes.filter_map(|a| Some(a.number * volts(a.name)?.number)).collect();
    (!watts.is_empty()).then(|| watts.iter().sum())
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Unit {
    Volt,
    Ampere,
}

/// One line of the answer.
#[derive(Debug)]
struct Value<'a> {
    name: &'a str,
    unit: Unit,
    number: f64,
}

impl Value<'_> {
    fn is_same(&self, other: &Self) -> bool {
        (self.name, self.unit) == (other.name, other.unit)
    }
}

fn value(line: &str) -> Option<Value<'_>> {
    let (name, rest) = line.trim().split_once(char::is_whitespace)?;
    let (kind, number) = rest.trim_start().split_once('=')?;
    let (kind, converter) = kind.split_once('(')?;
    let unit = match kind {
        "current" => Unit::Ampere,
        "volt" => Unit::Volt,
        _ => return None,
    };
    let (end, letter) = if unit == Unit::Volt { ("_V", 'V') } else { ("_A", 'A') };
    let digits = number.strip_suffix(letter)?;
    let number = decimal(digits).filter(|number| SANE.contains(number))?;
    let sound = converter.strip_suffix(')').is_some_and(|n| n.bytes().all(|byte| byte.is_ascii_digit()));
    let name = name.strip_suffix(end).unwrap_or(name);
    (sound && !name.is_empty()).then_some(Value { name, unit, number })
}

/// A decimal number; `parse` alone would accept `1e9`, `inf` and `NaN` as well.
fn decimal(text: &str) -> Option<f64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let sound = text.len() <= MOST_FIGURES && digits(whole) && digits(part);
    sound.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::super::tests::{RAILS, RAILS_WATTS};
    use super::*;
    use crate::random::Lcg;

    #[test]
    fn the_power_of_a_pi_5_is_the_sum_over_its_twelve_rails() {
        let watts = rails_watts(RAILS).expect("twelve rails");
        assert!((watts - RAILS_WATTS).abs() < 1e-6, "{watts}");
    }

    #[test]
    fn rails_are_paired_by_name_whatever_the_order_numbers_or_endings() {
        let reversed: Vec<_> = RAILS.lines().rev().collect();
        let renumbered = RAILS.replace("volt(", "volt(1").replace("current(", "current(9");
        let bare = RAILS.replace("_A current", " current").replace("_V volt", " volt");
        for text in [reversed.join("\n"), renumbered, bare, RAILS.replace('\n', "\r\n\n")] {
            let watts = rails_watts(&text).expect("twelve rails");
            assert!((watts - RAILS_WATTS).abs() < 1e-6, "{watts} in {text}");
        }
    }

    #[test]
    fn the_supply_and_the_clock_battery_add_nothing_nor_does_a_rail_without_a_voltage() {
        let rails = "X_A current(1)=2.0A\nX_V volt(2)=3.0V\nEXT5V_V volt(24)=5.1V\nBATT_V volt(25)=3.0V\n";
        assert_eq!(rails_watts(rails), Some(6.0));
        assert_eq!(rails_watts(&format!("{rails}Y_A current(3)=1.0A")), Some(6.0));
        assert_eq!(rails_watts("EXT5V_V volt(24)=5.1V"), None);
    }

    #[test]
    fn one_bad_line_spoils_the_answer() {
        let bad = [
            "X_A current(1)=2.0A\nX_A current(1)=2.0A", // twice
            "X_A current(1)=-2.0A",
            "X_A current(1)=nanA",
            "X_A current(1)=infA",
            "X_A current(1)=1e3A",
            "X_A current(1)=101.0A",
            "X_A current(1)=.5A",
            "X_A current(1)=5.A",
            "X_A current(1)=1.2.3A",
            "X_A current(1)=0.0000000000000000000000001A",
            "X_A current(1)=2.0V",
            "X_A volt(1)=2.0A",
            "X_A current(1)=2.0",
            "X_A current(1)=",
            "X_A current(x)=2.0A",
            "X_A current=2.0A",
            "X_A power(1)=2.0A",
            "_A current(1)=2.0A",
            "X_A",
            "error=1 error_msg=\"Command not registered\"",
        ];
        for bad in bad {
            assert_eq!(rails_watts(&format!("Y_A current(2)=1.0A\nY_V volt(3)=1.0V\n{bad}")), None, "{bad}");
        }
    }

    /// Every answer that ends too early, at each of its bytes.
    #[test]
    fn an_answer_that_is_cut_short_within_a_line_is_none() {
        let lines: Vec<_> = RAILS.lines().map(str::trim).collect();
        for end in 0..RAILS.len() {
            let (before, last) = RAILS[..end].rsplit_once('\n').unwrap_or(("", &RAILS[..end]));
            let is_whole = last.trim().is_empty() || lines.contains(&last.trim());
            let has_pair = before.contains("3V7_WL_SW_V") || is_whole && last.contains("3V7_WL_SW_V");
            assert_eq!(rails_watts(&RAILS[..end]).is_some(), is_whole && has_pair, "{last}");
        }
    }

    #[test]
    fn a_damaged_answer_never_panics_and_never_becomes_more_than_a_board_can_draw() {
        let mut numbers = Lcg::new(158);
        let mut next = || numbers.next_u31() as usize;
        let mut refused = 0;
        for _ in 0..20_000 {
            let mut bytes = RAILS.as_bytes().to_vec();
            for _ in 0..1 + next() % 4 {
                let at = next() % bytes.len();
                match next() % 3 {
                    0 => bytes[at] = next() as u8,
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, bytes[next() % bytes.len()]),
                }
            }
            let text = String::from_utf8_lossy(&bytes);
            match rails_watts(&text) {
                Some(watts) => {
                    assert!(watts.is_finite() && (0.0..=12.0 * 100.0 * 100.0).contains(&watts), "{text}")
                }
                None => refused += 1,
            }
            assert_eq!(throttle_flags(&text), None);
        }
        assert!(refused > 5_000, "{refused}");
    }

    #[test]
    fn the_flags_are_read_whatever_stands_around_them() {
        for (text, flags) in [
            ("throttled=0x0", 0),
            ("throttled=0x50005\n", 0x50005),
            ("  throttled=0xE0008 \r\n", 0xE0008),
            ("throttled=0xffffffff", u32::MAX),
            ("throttled=0x00000001", 1),
        ] {
            assert_eq!(throttle_flags(text), Some(flags), "{text}");
        }
    }

    #[test]
    fn what_are_no_flags_is_none() {
        let long = format!("throttled=0x{}", "0".repeat(4000));
        let texts = ["", "throttled=", "throttled=0x", "throttled=5", "throttled=0x+5", "throttled=0x-1"];
        let more =
            ["throttled=0x1ffffffff", "throttled=0x5 0x5", "throttled=0xg", "Throttled=0x1", "x", &long];
        for text in texts.into_iter().chain(more) {
            assert_eq!(throttle_flags(text), None, "{text}");
        }
    }
}
