//! The bytes of the history's file: a header, the steps of both rings, a checksum.
//!
//! Integers of fixed size are little-endian. The header is [`MAGIC`], the version (2 bytes) and the number of columns
//! (2 bytes). Each ring has the minutes of its step (2 bytes), the number of its steps (4 bytes) and the steps. A step is
//! written as what differs from the one before, which is little while nothing happens: the minutes between the two as a
//! variable-length integer (LEB128), one bit for each column whose code differs, and for each of these the difference in
//! zigzag form as such an integer. The CRC-32 of all of this (4 bytes) is the end.
//!
//! A later version adds columns at the end without a new version number: fewer are filled up with unknown values, and more
//! are skipped. Deliberately knows no file.

use super::HistorySteps;
use super::column::COLUMNS;
use super::record::StepRecord;
use super::ring::StepRing;

/// The first bytes of every such file.
pub const MAGIC: &[u8; 16] = b"bitnetd history\n";
/// The version of the format. It changes only where an earlier program would read the file wrongly.
const VERSION: u16 = 1;
/// The most columns that a file may have, those of later versions included.
const MAX_COLUMNS: usize = 64;
/// No file of this version is longer, in bytes: each step has at most 5 bytes for its minute, a bit for each column, and 3
/// bytes for each difference of two codes.
pub const MAX_FILE: usize = 64 + (1440 + 2880) * (5 + MAX_COLUMNS / 8 + 3 * MAX_COLUMNS);

/// The bytes of a file.
pub fn encode(steps: &HistorySteps) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((COLUMNS as u16).to_le_bytes());
    for ring in [&steps.minutes, &steps.quarters] {
        bytes.extend((ring.length() as u16).to_le_bytes());
        bytes.extend((ring.steps().len() as u32).to_le_bytes());
        let mut before = StepRecord::new(0);
        for step in ring.steps() {
            write_step(&mut bytes, &before, step);
            before = *step;
        }
    }
    let sum = crc32fast::hash(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

fn write_step(bytes: &mut Vec<u8>, before: &StepRecord, step: &StepRecord) {
    write_integer(bytes, step.minute - before.minute);
    let bits = bytes.len();
    bytes.resize(bits + COLUMNS.div_ceil(8), 0);
    for (at, (code, earlier)) in step.codes.iter().zip(&before.codes).enumerate() {
        if code != earlier {
            bytes[bits + at / 8] |= 1 << (at % 8);
            let difference = i32::from(*code) - i32::from(*earlier);
            write_integer(bytes, ((difference << 1) ^ (difference >> 31)).cast_unsigned());
        }
    }
}

fn write_integer(bytes: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Reads the bytes of a file; the error says what is wrong with them.
pub fn parse(bytes: &[u8]) -> Result<HistorySteps, String> {
    if !bytes.starts_with(MAGIC) {
        return Err("it is no history of bitnetd".into());
    }
    let Some((body, sum)) = bytes.split_last_chunk::<4>() else { return Err("it is cut off".into()) };
    if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
        return Err("it is damaged: its checksum is wrong".into());
    }
    parse_unchecked(body)
}

/// Reads the bytes of a file without its checksum, whatever they are. Only for tests of this parser.
pub fn parse_unchecked(body: &[u8]) -> Result<HistorySteps, String> {
    let damaged = || "it is damaged".to_string();
    let mut reader = ByteReader(body.strip_prefix(MAGIC).ok_or_else(damaged)?);
    let version = u16::from_le_bytes(reader.bytes().ok_or_else(damaged)?);
    if version != VERSION {
        return Err(format!("it has version {version} of the format, and this program knows only {VERSION}"));
    }
    let columns = usize::from(u16::from_le_bytes(reader.bytes().ok_or_else(damaged)?));
    if columns > MAX_COLUMNS {
        return Err(damaged());
    }
    let mut steps = HistorySteps::default();
    for ring in [&mut steps.minutes, &mut steps.quarters] {
        reader.ring(ring, columns).ok_or_else(damaged)?;
    }
    if reader.0.is_empty() { Ok(steps) } else { Err(damaged()) }
}

/// The bytes that are not read yet.
struct ByteReader<'b>(&'b [u8]);

impl ByteReader<'_> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn integer(&mut self) -> Option<u32> {
        let mut value = 0u32;
        for shift in (0..35).step_by(7) {
            let [byte] = self.bytes()?;
            let part = u32::from(byte & 0x7f);
            value |= part << shift;
            if part << shift >> shift != part {
                return None;
            }
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn ring(&mut self, ring: &mut StepRing, columns: usize) -> Option<()> {
        let length = u32::from(u16::from_le_bytes(self.bytes()?));
        let count = u32::from_le_bytes(self.bytes()?) as usize;
        if length != ring.length() || count > ring.capacity() {
            return None;
        }
        let mut before = StepRecord::new(0);
        for at in 0..count {
            let step = self.step(&before, columns)?;
            let is_in_order = at == 0 || step.minute > before.minute;
            if !is_in_order || step.minute % length != 0 {
                return None;
            }
            ring.add(step, None);
            before = step;
        }
        Some(())
    }

    fn step(&mut self, before: &StepRecord, columns: usize) -> Option<StepRecord> {
        let mut step = StepRecord { minute: before.minute.checked_add(self.integer()?)?, ..*before };
        let mut bits = [0; MAX_COLUMNS / 8];
        let bits = &mut bits[..columns.div_ceil(8)];
        for byte in bits.iter_mut() {
            [*byte] = self.bytes()?;
        }
        for at in (0..columns).filter(|at| bits[at / 8] >> (at % 8) & 1 == 1) {
            let zigzag = self.integer()?;
            let difference = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
            // A column of a later version has no place here.
            if let Some(code) = step.codes.get_mut(at) {
                *code = u16::try_from(i32::from(*code).checked_add(difference)?).ok()?;
            }
        }
        Some(step)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::column::StepColumn as C;
    use super::super::record::tests::step;
    use super::*;
    use crate::random::Lcg;

    /// Full rings of a device: with readings that waver, and requests in one step of three.
    pub(in crate::telemetry::history) fn full() -> HistorySteps {
        let mut random = Lcg::new(3);
        let mut steps = HistorySteps::default();
        for ring in [&mut steps.minutes, &mut steps.quarters] {
            let (length, capacity) = (ring.length(), ring.capacity() as u32);
            for at in 0..capacity {
                let busy = if random.next_u31().is_multiple_of(3) { 1.0 } else { 0.0 };
                let mut waver = |least: f64, by: f64| least + by * f64::from(random.fraction());
                let values = [
                    (C::ObservedS, 60.0 * f64::from(length)),
                    (C::PowerMean, waver(2.7, 0.2 + busy)),
                    (C::PowerMin, waver(2.5, 0.1)),
                    (C::PowerMax, waver(3.5, 3.0)),
                    (C::TemperatureMean, waver(50.0, 2.0 + 10.0 * busy)),
                    (C::TemperatureMin, waver(49.0, 1.0)),
                    (C::TemperatureMax, waver(53.0, 9.0)),
                    (C::ThrottledS, 0.0),
                    (C::CpuMean, waver(1.0, 60.0 * busy)),
                    (C::QueueMax, busy),
                    (C::MemoryMean, 45_000.0),
                    (C::MemoryBudget, 1_048_576.0),
                    (C::Completed, busy * 3.0),
                    (C::DecodedTokens, busy * waver(100.0, 50.0)),
                    (C::DecodeMs, busy * waver(10_000.0, 5000.0)),
                    (C::TtftP50, waver(400.0, 100.0 * busy)),
                    (C::Joules, waver(160.0, 60.0)),
                ];
                ring.add(step(29_930_400 + at * length, &values), None);
            }
        }
        steps
    }

    #[test]
    fn what_is_written_is_read_again() {
        for steps in [HistorySteps::default(), full()] {
            assert_eq!(parse(&encode(&steps)), Ok(steps));
        }
    }

    #[test]
    fn thirty_days_of_a_device_are_a_small_file() {
        let bytes = encode(&full()).len();
        assert!((60_000..120_000).contains(&bytes), "{bytes}");
        assert!(MAX_FILE < 1 << 20);
    }

    #[test]
    fn every_file_that_is_cut_off_or_has_a_wrong_bit_is_refused() {
        let mut few = HistorySteps::default();
        for at in 0..5 {
            few.minutes
                .add(step(29_930_400 + at, &[(C::PowerMean, f64::from(at)), (C::Completed, 7.0)]), None);
        }
        let bytes = encode(&few);
        for end in 0..bytes.len() {
            parse(&bytes[..end]).expect_err("cut off");
        }
        parse(&[&bytes[..], b"x"].concat()).expect_err("too long");
        for at in 0..bytes.len() * 8 {
            let mut wrong = bytes.clone();
            wrong[at / 8] ^= 1 << (at % 8);
            parse(&wrong).expect_err("a wrong bit");
        }
    }

    #[test]
    fn rubbish_behind_a_right_checksum_is_refused_or_read_and_written_again() {
        let mut random = Lcg::new(9);
        let sound = encode(&full());
        for _ in 0..300 {
            let mut bytes = sound[..2000].to_vec();
            for _ in 0..random.next_u31() % 5 {
                let at = 16 + random.next_u31() as usize % (bytes.len() - 16);
                bytes[at] = random.next_u31() as u8;
            }
            if let Ok(steps) = parse_unchecked(&bytes) {
                assert_eq!(parse(&encode(&steps)), Ok(steps));
            }
        }
    }

    /// A file as version 1 with its first three columns wrote it: two steps of a minute, one of 15.
    const EARLIER: &[u8] = b"bitnetd history\n\x01\x00\x03\x00\
        \x01\x00\x02\x00\x00\x00\
        \xa0\xe7\xa2\x0e\x07\x85\xff\x07\xfb\xff\x07\xbd\xc1\x07\
        \x01\x04\x14\
        \x0f\x00\x01\x00\x00\x00\
        \xa0\xe7\xa2\x0e\x01\x8d\xfe\x07";

    #[test]
    fn a_file_with_fewer_or_more_columns_is_read() {
        let steps = parse_unchecked(EARLIER).expect("sound");
        let [one, two] = [0, 1].map(|at| steps.minutes.steps()[at]);
        assert_eq!((one.minute, two.minute), (29_930_400, 29_930_401));
        assert_eq!(
            (one.get(C::ObservedS), one.get(C::PowerMean), one.get(C::Completed)),
            (Some(60.0), Some(4.0), None)
        );
        assert_eq!(two.get(C::AlertBits), Some(0.0));
        // Two columns that only a later version knows.
        let mut later = encode(&HistorySteps::default());
        later.truncate(16);
        later.extend([1, 0]);
        later.extend((COLUMNS as u16 + 2).to_le_bytes());
        later.extend([1, 0, 1, 0, 0, 0, 5]);
        let mut bits = vec![0; (COLUMNS + 2).div_ceil(8)];
        for at in [C::Completed as usize, COLUMNS + 1] {
            bits[at / 8] |= 1 << (at % 8);
        }
        later.extend(bits);
        // From unknown, 65535, to 3 is a difference of -65532; and one of the unknown column.
        write_integer(&mut later, 2 * 65_532 - 1);
        write_integer(&mut later, 1234);
        later.extend([15, 0, 0, 0, 0, 0]);
        let steps = parse_unchecked(&later).expect("sound");
        assert_eq!(steps.minutes.steps()[0].get(C::Completed), Some(3.0));
    }

    #[test]
    fn a_version_that_is_not_known_is_named() {
        let mut bytes = encode(&HistorySteps::default());
        bytes[16] = 9;
        let body = bytes.len() - 4;
        let sum = crc32fast::hash(&bytes[..body]);
        bytes[body..].copy_from_slice(&sum.to_le_bytes());
        assert!(parse(&bytes).expect_err("unknown").contains("version 9"));
    }
}
