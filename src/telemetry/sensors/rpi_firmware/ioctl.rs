//! The kernel's interface to the mailbox: one ioctl, the only `unsafe` of the sensors. Deliberately knows no
//! command.

use super::message::{MailboxMessage, WORDS};
use super::{Mailbox, MailboxDevice};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use std::fs::File;
use std::io;

/// The devices, the more restricted one first: it accepts text commands only, and newer kernels have it.
const PATHS: [&str; 2] = ["/dev/vcio_gencmd", "/dev/vcio"];

/// `_IOWR(100, 0, char *)`: its size is that of a pointer, though the argument points to the message. Source:
/// drivers/char/broadcom/vcio.c of raspberrypi/linux.
const PROPERTY: Opcode = opcode::read_write::<*mut u8>(100, 0);

/// Whether the mailbox of this machine can be used.
#[derive(Debug)]
pub(in crate::telemetry::sensors) enum MailboxAccess {
    Open(Mailbox),
    /// There is one, and opening it failed.
    Refused(&'static str, io::Error),
    /// There is none, or none is visible to this process.
    Absent,
}

impl MailboxAccess {
    /// The mailbox, if it is open.
    pub fn opened(&mut self) -> Option<&mut Mailbox> {
        match self {
            MailboxAccess::Open(mailbox) => Some(mailbox),
            MailboxAccess::Refused(..) | MailboxAccess::Absent => None,
        }
    }
}

/// Opens the mailbox of the running machine.
pub(in crate::telemetry::sensors) fn open() -> MailboxAccess {
    let mut refused = MailboxAccess::Absent;
    for path in PATHS {
        match File::open(path) {
            Ok(file) => return MailboxAccess::Open(Mailbox::new(Box::new(KernelMailbox(file)), path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // The error of the more restricted device is the one to report.
            Err(error) if matches!(refused, MailboxAccess::Absent) => {
                refused = MailboxAccess::Refused(path, error)
            }
            Err(_) => {}
        }
    }
    refused
}

#[derive(Debug)]
struct KernelMailbox(File);

impl MailboxDevice for KernelMailbox {
    fn call(&mut self, message: &mut MailboxMessage) -> io::Result<()> {
        let words: &mut [u32; WORDS] = message.words_mut();
        // The kernel reads and writes as many bytes as the first word says.
        debug_assert_eq!(words[0] as usize, size_of_val(words));
        // SAFETY: the opcode is that of the driver behind the devices above. It reads the message's length from its
        // first word, which `MailboxMessage::ask` sets to the size of this array, and reads and writes that many bytes of it;
        // any bytes are valid words, and nothing keeps the pointer after the call.
        Ok(unsafe { ioctl(&self.0, Updater::<PROPERTY, _>::new(words)) }?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_is_the_one_that_the_driver_knows() {
        assert_eq!(PROPERTY, 0xC000_6400 | (size_of::<*mut u8>() as Opcode) << 16);
        #[cfg(target_pointer_width = "64")]
        assert_eq!(PROPERTY, 0xC008_6400);
    }

    #[test]
    fn a_file_that_is_no_mailbox_refuses_the_call_and_leaves_the_message_as_it_was() {
        let mut device = KernelMailbox(File::open("/dev/null").expect("every Linux has it"));
        let mut message = MailboxMessage::default();
        message.set_command("get_throttled");
        assert!(device.call(&mut message).is_err());
        assert_eq!(message.answer(), None);
    }
}
