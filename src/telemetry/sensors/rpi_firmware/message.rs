//! A mailbox property message that carries a text command to the firmware and its answer back, as words of 32 bits.
//! Deliberately knows no command.
//!
//! | word | question | answer |
//! | --- | --- | --- |
//! | 0 | bytes of the whole message | the same |
//! | 1 | 0, a request | `0x8000_0000`, by the kernel, when the firmware took it |
//! | 2 | the tag `0x0003_0080` | the same |
//! | 3 | bytes of the text buffer | the same |
//! | 4 | 0 | the answer's length, with bit 31 |
//! | 5 | 0 | 0, or the command's error |
//! | 6… | the command, ending in NUL | the answer, ending in NUL |
//! | last | 0, no more tags | the same |
//!
//! Sources: `vcgencmd` of raspberrypi/utils and drivers/char/broadcom/vcio.c of raspberrypi/linux.

/// Bytes of the text buffer: the same as in `vcgencmd`, and four times the longest answer.
pub(super) const LENGTH: usize = 4096;

pub(super) const TEXT_WORDS: usize = LENGTH / 4;

/// Words before the text.
const HEAD: usize = 6;

/// Words of the whole message.
pub(super) const WORDS: usize = HEAD + TEXT_WORDS + 1;

/// The tag of a text command, `GET_GENCMD_RESULT`; the only one that /dev/vcio_gencmd lets through.
const COMMAND: u32 = 0x0003_0080;

/// Written to the second word of a message that the firmware processed.
const TAKEN: u32 = 0x8000_0000;

/// One message, reused for commands and answers.
#[derive(Debug)]
pub(in crate::telemetry::sensors) struct MailboxMessage(Box<[u32; WORDS]>);

impl Default for MailboxMessage {
    fn default() -> Self {
        MailboxMessage(Box::new([0; WORDS]))
    }
}

impl MailboxMessage {
    /// Writes a command over the previous contents. A command is shorter than the text buffer.
    pub fn set_command(&mut self, command: &str) {
        self.0.fill(0);
        self.0[0] = (WORDS * 4) as u32;
        self.0[2] = COMMAND;
        self.0[3] = LENGTH as u32;
        for (word, bytes) in self.0[HEAD..HEAD + TEXT_WORDS].iter_mut().zip(command.as_bytes().chunks(4)) {
            let mut four = [0; 4];
            four[..bytes.len()].copy_from_slice(bytes);
            *word = u32::from_ne_bytes(four);
        }
    }

    /// The text of the answer; `None` where the firmware did not process the message, reports an error, or the text
    /// is not terminated or not UTF-8.
    pub fn answer(&self) -> Option<String> {
        if self.0[1] != TAKEN || self.0[5] != 0 {
            return None;
        }
        let text = &self.0[HEAD..HEAD + TEXT_WORDS];
        let mut bytes: Vec<u8> = text.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.truncate(bytes.iter().position(|byte| *byte == 0)?);
        String::from_utf8(bytes).ok()
    }

    /// All words, for the ioctl.
    pub fn words_mut(&mut self) -> &mut [u32; WORDS] {
        &mut self.0
    }

    /// All words.
    #[cfg(test)]
    pub fn words(&self) -> &[u32; WORDS] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(bytes: &[u8], taken: u32, error: u32) -> Option<String> {
        let mut message = MailboxMessage::default();
        message.set_command(std::str::from_utf8(bytes).unwrap_or("?"));
        let words = message.words_mut();
        (words[1], words[5]) = (taken, error);
        for (word, bytes) in words[HEAD..].iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
        }
        message.answer()
    }

    #[test]
    fn a_text_comes_back_as_it_was_sent_whatever_its_length() {
        for length in 0..64 {
            let text = "abcdefghi".repeat(8)[..length].to_owned();
            assert_eq!(answered(text.as_bytes(), TAKEN, 0), Some(text));
        }
    }

    #[test]
    fn an_answer_without_its_marks_or_its_end_is_none() {
        assert_eq!(answered(b"text", 0, 0), None, "not taken");
        assert_eq!(answered(b"text", 0x8000_0001, 0), None, "refused");
        assert_eq!(answered(b"text", TAKEN, u32::MAX), None, "an error");
        assert_eq!(answered(&[b'a'; LENGTH], TAKEN, 0), None, "no end");
        assert_eq!(answered(&[0xC3, b'a', b'b', b'c', 0, 0, 0, 0], TAKEN, 0), None, "no text");
        let longest = [b'a'; LENGTH - 4];
        assert_eq!(answered(&longest, TAKEN, 0).map(|text| text.len()), Some(LENGTH - 4));
    }
}
