//! Handles SIGBUS, which the kernel sends when a mapped page is read that its file no longer has.
//!
//! Without a handler SIGBUS ends the process. This handler maps zeros in place of the missing pages and records
//! that, and the read continues. It handles only reads within a guarded map; any other SIGBUS has the effect it had
//! before.
//!
//! Deliberately knows nothing of files: it is given address ranges.

use libc::{c_int, c_void, siginfo_t};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The most maps that are guarded at once. A daemon has two: the model, and its head in another format.
const MAX_GUARDS: usize = 16;

/// The handler may read only memory that is always there, and take no lock.
static SLOTS: [GuardSlot; MAX_GUARDS] = [const { GuardSlot::new() }; MAX_GUARDS];

/// The action of SIGBUS before ours; also tells whether the handler is installed.
static PREVIOUS: OnceLock<Option<PreviousHandler>> = OnceLock::new();

struct PreviousHandler {
    action: libc::sigaction,
    page: usize,
}

/// The addresses of one map.
#[derive(Debug)]
struct GuardSlot {
    is_taken: AtomicBool,
    /// 0 while the slot has no map.
    start: AtomicUsize,
    /// After the last page.
    end: AtomicUsize,
    has_zeroed_pages: AtomicBool,
}

/// Guards a map until it is dropped, which must happen before the map is dropped.
#[derive(Debug)]
pub(super) struct Guard(&'static GuardSlot);

impl Guard {
    /// Guards `map` from now on. `None` where every slot is taken, or the system refuses the handler.
    pub fn over(map: &[u8]) -> Option<Self> {
        let page = PREVIOUS.get_or_init(install).as_ref()?.page;
        let place = SLOTS.iter().find(|place| place.take())?;
        let range = map.as_ptr_range();
        place.end.store((range.end as usize).next_multiple_of(page), Ordering::Relaxed);
        place.start.store(range.start as usize, Ordering::Release);
        Some(Guard(place))
    }

    /// Whether a page was missing when it was read.
    pub fn has_zeroed_pages(&self) -> bool {
        self.0.has_zeroed_pages.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.start.store(0, Ordering::Release);
        self.0.is_taken.store(false, Ordering::Release);
    }
}

impl GuardSlot {
    const fn new() -> Self {
        GuardSlot {
            is_taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            has_zeroed_pages: AtomicBool::new(false),
        }
    }

    fn take(&self) -> bool {
        let was_free = !self.is_taken.swap(true, Ordering::Acquire);
        if was_free {
            self.has_zeroed_pages.store(false, Ordering::Relaxed);
        }
        was_free
    }

    /// The end of the map in this slot, if `address` is in it.
    fn end_around(&self, address: usize) -> Option<usize> {
        let start = self.start.load(Ordering::Acquire);
        let end = self.end.load(Ordering::Acquire);
        // The slot may have been given to another map between the two loads; then the start has changed too.
        let is_whole = start != 0 && self.start.load(Ordering::Relaxed) == start;
        (is_whole && (start..end).contains(&address)).then_some(end)
    }
}

/// Installs the handler; `None` where the system refuses it.
fn install() -> Option<PreviousHandler> {
    // SAFETY: sysconf reads a constant of the system.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    let mut before = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: an action of zeros is a whole one: no handler, no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_bus_error;
    action.sa_sigaction = handler as usize;
    // Runs on the alternate signal stack that Rust gives each thread for its own handler of stack overflows.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: both are whole actions or space for one, and the handler keeps to what a handler may do.
    let done = unsafe { libc::sigaction(libc::SIGBUS, &action, before.as_mut_ptr()) };
    // SAFETY: sigaction has filled it in when it answers 0.
    (done == 0).then(|| PreviousHandler { action: unsafe { before.assume_init() }, page })
}

/// The handler calls only mmap, sigaction and raise, and nothing of Rust's library that could lock or allocate.
extern "C" fn on_bus_error(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes valid signal information to a handler with SA_SIGINFO.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let is_fault = code > 0;
    if !(is_fault && map_zeros(address)) {
        forward_signal(signal, is_fault);
    }
}

/// Maps zeros in place of all pages from the one at `address` to the end of its map.
fn map_zeros(address: usize) -> bool {
    let Some(Some(PreviousHandler { page, .. })) = PREVIOUS.get() else { return false };
    let found = SLOTS.iter().find_map(|place| Some((place, place.end_around(address)?)));
    let Some((place, end)) = found else { return false };
    let first = address - address % page;
    // Set before the pages are mapped: whoever reads a zero finds the flag set.
    place.has_zeroed_pages.store(true, Ordering::SeqCst);
    let (protection, flags) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED);
    // SAFETY: the range lies within a guarded map, which is dropped after its guard, so that nothing else is there;
    // it was readable and read-only before, and is so afterwards.
    let mapped =
        unsafe { libc::mmap(ptr::with_exposed_provenance_mut(first), end - first, protection, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

/// Restores the previous action for a fault outside the guarded maps: the read is repeated and faults again. A
/// signal that another process sent ends the process, as it does without a handler.
fn forward_signal(signal: c_int, is_fault: bool) {
    if !is_fault {
        // SAFETY: both may be called by a handler; the signal is delivered when this one returns.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    } else if let Some(Some(PreviousHandler { action, .. })) = PREVIOUS.get() {
        // SAFETY: the action was in place before ours.
        unsafe { libc::sigaction(signal, action, ptr::null_mut()) };
    }
}
