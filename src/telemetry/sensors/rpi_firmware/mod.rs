//! Queries to the firmware of a Raspberry Pi over its mailbox, as `vcgencmd` makes them, without `vcgencmd`.
//!
//! Commands and answers are text. Deliberately knows nothing of files under a root: a recorded board has no
//! firmware, and tests bring a mailbox device of their own.

mod ioctl;
mod message;
mod parse;

pub(super) use ioctl::{MailboxAccess, open};
pub use parse::{rails_watts, throttle_flags};

use message::MailboxMessage;
use std::fmt::Debug;
use std::io;
use std::time::{Duration, Instant};

/// After a command without an answer it is not sent again for this long. Boards without the chip in question never
/// answer, and with a firmware that hangs the kernel blocks for a second each time.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// A device that replaces a message by its answer.
pub(super) trait MailboxDevice: Debug + Send {
    fn call(&mut self, message: &mut MailboxMessage) -> io::Result<()>;
}

/// A command to the firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirmwareCommand {
    /// The throttle flags.
    Throttled,
    /// Volts and amperes of each rail behind the PMIC of a Raspberry Pi 5.
    Rails,
}

impl FirmwareCommand {
    fn command(self) -> &'static str {
        match self {
            FirmwareCommand::Throttled => "get_throttled",
            FirmwareCommand::Rails => "pmic_read_adc",
        }
    }
}

/// An open mailbox.
#[derive(Debug)]
pub(super) struct Mailbox {
    device: Box<dyn MailboxDevice>,
    path: String,
    message: MailboxMessage,
    /// Until when each command is not sent, by its number.
    blocked_until: [Option<Instant>; 2],
}

impl Mailbox {
    pub fn new(device: Box<dyn MailboxDevice>, path: &str) -> Self {
        Mailbox { device, path: path.into(), message: MailboxMessage::default(), blocked_until: [None; 2] }
    }

    /// The bits of `get_throttled`: 0 to 3 are the present state, 16 to 19 what occurred since boot.
    pub fn throttled(&mut self, now: Instant) -> Option<u32> {
        self.query(FirmwareCommand::Throttled, now, throttle_flags)
    }

    /// The power of all rails that have both a voltage and a current, in watts.
    pub fn rails_watts(&mut self, now: Instant) -> Option<f64> {
        self.query(FirmwareCommand::Rails, now, rails_watts)
    }

    pub fn throttled_source(&self) -> String {
        format!("{} {}", self.path, FirmwareCommand::Throttled.command())
    }

    pub fn rails_source(&self) -> String {
        format!("{} {}", self.path, FirmwareCommand::Rails.command())
    }

    fn query<T>(
        &mut self,
        question: FirmwareCommand,
        now: Instant,
        read: fn(&str) -> Option<T>,
    ) -> Option<T> {
        let number = question as usize;
        if self.blocked_until[number].is_some_and(|until| now < until) {
            return None;
        }
        let answer = self.exchange(question.command()).as_deref().and_then(read);
        self.blocked_until[number] = answer.is_none().then(|| now + RETRY_AFTER);
        answer
    }

    fn exchange(&mut self, command: &str) -> Option<String> {
        self.message.set_command(command);
        self.device.call(&mut self.message).ok()?;
        self.message.answer()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::message::{LENGTH, TEXT_WORDS, WORDS};
    use super::*;
    use std::sync::{Arc, Mutex};

    /// What a Raspberry Pi 5 with four busy processors says, with figures that owners of such a board show.
    pub const RAILS: &str = " 3V7_WL_SW_A current(0)=0.09368929A
   3V3_SYS_A current(1)=0.08783370A
   1V8_SYS_A current(2)=0.18054710A
  DDR_VDD2_A current(3)=0.22543980A
  DDR_VDDQ_A current(4)=0.06666720A
   1V1_SYS_A current(5)=0.17566740A
    0V8_SW_A current(6)=0.37670900A
  VDD_CORE_A current(7)=6.22421000A
   3V3_DAC_A current(17)=0.00006105A
   3V3_ADC_A current(18)=0.00036630A
   0V8_AON_A current(16)=0.00305250A
      HDMI_A current(22)=0.02417580A
 3V7_WL_SW_V volt(8)=3.69977600V
   3V3_SYS_V volt(9)=3.31003300V
   1V8_SYS_V volt(10)=1.80512600V
  DDR_VDD2_V volt(11)=1.10476100V
  DDR_VDDQ_V volt(12)=0.60146460V
   1V1_SYS_V volt(13)=1.11025500V
    0V8_SW_V volt(14)=0.80146440V
  VDD_CORE_V volt(15)=0.86173300V
   3V3_DAC_V volt(20)=3.31318300V
   3V3_ADC_V volt(21)=3.30677300V
   0V8_AON_V volt(19)=0.80029220V
      HDMI_V volt(23)=5.08664000V
     EXT5V_V volt(24)=5.09066000V
      BATT_V volt(25)=0.00000000V
";
    /// The sum of volts times amperes of the twelve rails above, computed apart.
    pub const RAILS_WATTS: f64 = 7.239_818_798;

    /// How the firmware of a fake board behaves.
    #[derive(Debug, Clone)]
    pub enum Firmware {
        /// Answers with these texts to `get_throttled` and `pmic_read_adc`; an empty one means: not registered.
        Says(&'static str, &'static str),
        /// The call itself fails.
        Fails,
        /// The kernel does not say that the firmware took the message.
        Ignores,
        /// Fills the whole text with one byte, so that it has no end.
        Floods(u8),
    }

    /// A device that checks every word of what it is asked, then answers as the firmware does.
    #[derive(Debug)]
    pub struct Fake {
        pub firmware: Arc<Mutex<Firmware>>,
        /// The commands that came.
        pub asked: Arc<Mutex<Vec<String>>>,
    }

    impl MailboxDevice for Fake {
        fn call(&mut self, message: &mut MailboxMessage) -> io::Result<()> {
            let command = checked(message.words());
            self.asked.lock().expect("one thread").push(command.clone());
            let words = message.words_mut();
            let firmware = self.firmware.lock().expect("one thread").clone();
            let (answer, code) = match (&firmware, command.as_str()) {
                (Firmware::Fails, _) => return Err(io::ErrorKind::TimedOut.into()),
                (Firmware::Ignores, _) => return Ok(()),
                (Firmware::Floods(byte), _) => {
                    words[1] = 0x8000_0000;
                    words[6..6 + TEXT_WORDS].fill(u32::from_ne_bytes([*byte; 4]));
                    return Ok(());
                }
                (Firmware::Says(flags, _), "get_throttled") if !flags.is_empty() => (*flags, 0),
                (Firmware::Says(_, rails), "pmic_read_adc") if !rails.is_empty() => (*rails, 0),
                _ => ("error=1 error_msg=\"Command not registered\"", u32::MAX),
            };
            (words[1], words[4], words[5]) = (0x8000_0000, 0x8000_0000 | answer.len() as u32, code);
            // As the firmware does: the bytes behind the answer's end stay what they were.
            let mut bytes: Vec<u8> = words[6..].iter().flat_map(|word| word.to_ne_bytes()).collect();
            bytes[..answer.len()].copy_from_slice(answer.as_bytes());
            bytes[answer.len()] = 0;
            for (word, bytes) in words[6..].iter_mut().zip(bytes.chunks_exact(4)) {
                *word = u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
            }
            Ok(())
        }
    }

    /// The command of a message whose every word is as it should be.
    fn checked(words: &[u32; WORDS]) -> String {
        assert_eq!(WORDS, 1031, "six words, 4096 bytes of text, an end");
        assert_eq!(words[0], 4124, "bytes of the whole message");
        assert_eq!(words[1], 0, "a request");
        assert_eq!(words[2], 0x0003_0080, "the tag that takes commands");
        assert_eq!(words[3], 4096, "bytes of room for the answer");
        assert_eq!(words[4], 0, "no answer yet");
        assert_eq!(words[5], 0, "no error yet");
        assert_eq!(words[1030], 0, "the end of the tags");
        let text: Vec<u8> = words[6..1030].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let end = text.iter().position(|byte| *byte == 0).expect("a command ends");
        assert!(text[end..].iter().all(|byte| *byte == 0), "nothing of an answer before");
        String::from_utf8(text[..end].to_vec()).expect("a command is text")
    }

    /// What a test holds on to of its fake.
    pub type Handles = (Arc<Mutex<Firmware>>, Arc<Mutex<Vec<String>>>);

    pub fn mailbox(firmware: Firmware) -> (Mailbox, Handles) {
        let (firmware, asked) = (Arc::new(Mutex::new(firmware)), Arc::new(Mutex::new(Vec::new())));
        let fake = Fake { firmware: firmware.clone(), asked: asked.clone() };
        (Mailbox::new(Box::new(fake), "/dev/vcio_gencmd"), (firmware, asked))
    }

    fn set(handles: &Handles, firmware: Firmware) {
        *handles.0.lock().expect("one thread") = firmware;
    }

    #[test]
    fn a_command_is_encoded_as_the_firmware_expects_and_its_answer_is_decoded() {
        let (mut mailbox, (_, asked)) = mailbox(Firmware::Says("throttled=0x50005\n", RAILS));
        let now = Instant::now();
        assert_eq!(mailbox.throttled(now), Some(0x50005));
        let watts = mailbox.rails_watts(now).expect("a Pi 5");
        assert!((watts - RAILS_WATTS).abs() < 1e-6, "{watts}");
        // The question after a long answer is clean again: the fake checks that nothing is left of it.
        assert_eq!(mailbox.throttled(now), Some(0x50005));
        assert_eq!(*asked.lock().expect("one thread"), ["get_throttled", "pmic_read_adc", "get_throttled"]);
        assert_eq!(LENGTH, 4096);
    }

    #[test]
    fn a_board_without_the_power_chip_has_flags_and_no_rails() {
        let (mut mailbox, (_, asked)) = mailbox(Firmware::Says("throttled=0x0", ""));
        let now = Instant::now();
        assert_eq!((mailbox.throttled(now), mailbox.rails_watts(now)), (Some(0), None));
        for second in 1..60 {
            assert_eq!(mailbox.rails_watts(now + Duration::from_secs(second)), None);
        }
        let asked = asked.lock().expect("one thread");
        assert_eq!(
            asked.iter().filter(|command| *command == "pmic_read_adc").count(),
            1,
            "asked once a minute"
        );
    }

    #[test]
    fn an_answer_that_cannot_be_used_is_none_and_the_firmware_is_asked_again_later() {
        let bad = [Firmware::Fails, Firmware::Ignores, Firmware::Floods(b'0'), Firmware::Floods(0xFF)];
        let answer = ["throttled=", "throttled=0x", "garbage", "throttled=0x5\u{1F525}", "error=1"];
        let texts = answer.iter().map(|answer| Firmware::Says(answer, "VDD_CORE_A current(7)="));
        for firmware in bad.into_iter().chain(texts) {
            let (mut mailbox, handles) = mailbox(firmware.clone());
            let now = Instant::now();
            assert_eq!((mailbox.throttled(now), mailbox.rails_watts(now)), (None, None), "{firmware:?}");
            set(&handles, Firmware::Says("throttled=0x4", RAILS));
            let soon = now + RETRY_AFTER - Duration::from_millis(1);
            assert_eq!((mailbox.throttled(soon), mailbox.rails_watts(soon)), (None, None), "{firmware:?}");
            assert_eq!(handles.1.lock().expect("one thread").len(), 2, "not asked while it rests");
            assert_eq!(mailbox.throttled(now + RETRY_AFTER), Some(4), "{firmware:?}");
            assert!(mailbox.rails_watts(now + RETRY_AFTER).is_some(), "{firmware:?}");
        }
    }

    #[test]
    fn a_firmware_that_hangs_after_it_answered_is_left_alone_for_a_while() {
        let (mut mailbox, handles) = mailbox(Firmware::Says("throttled=0x0", RAILS));
        let now = Instant::now();
        assert_eq!(mailbox.throttled(now), Some(0));
        set(&handles, Firmware::Fails);
        for second in 1..=120 {
            assert_eq!(mailbox.throttled(now + Duration::from_secs(second)), None);
        }
        assert_eq!(handles.1.lock().expect("one thread").len(), 3, "once, and twice in two minutes");
    }
}
