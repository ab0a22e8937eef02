//! What happens when a mapped page is read that its file no longer has.
//!
//! The kernel sends SIGBUS, which ends a process that does not handle it. Here it puts zeros in the place of the
//! missing pages, notes that, and the read goes on. Only reads within a guarded map are mended; any other SIGBUS
//! does what it did before. Deliberately knows no file: it is told address ranges.

use libc::{c_int, c_void, siginfo_t};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Maps guarded at once. A daemon has two: the model, and its head in another form.
const MAX_GUARDS: usize = 16;

/// The handler may look at nothing but memory that is always there, and take no lock.
static SLOTS: [GuardSlot; MAX_GUARDS] = [const { GuardSlot::new() }; MAX_GUARDS];

/// What SIGBUS did before; also says whether the handler is in place.
static PREVIOUS: OnceLock<Option<PreviousHandler>> = OnceLock::new();

struct PreviousHandler {
    action: libc::sigaction,
    page: usize,
}

/// The addresses of one map.
#[derive(Debug)]
struct GuardSlot {
    is_taken: AtomicBool,
    /// 0 while there is no map here.
    start: AtomicUsize,
    /// After the last page.
    end: AtomicUsize,
    has_zeroed_pages: AtomicBool,
}

/// Watches over a map until it is dropped, which must be before the map is.
#[derive(Debug)]
pub(super) struct Guard(&'static GuardSlot);

impl Guard {
    /// Guards `map` from now on. `None` where every place is taken, or the system does not let us.
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

    /// The end of the map here, if `address` is in it.
    fn end_around(&self, address: usize) -> Option<usize> {
        let start = self.start.load(Ordering::Acquire);
        let end = self.end.load(Ordering::Acquire);
        // Another map may have come here between the two; then its start has, too.
        let is_whole = start != 0 && self.start.load(Ordering::Relaxed) == start;
        (is_whole && (start..end).contains(&address)).then_some(end)
    }
}

/// Puts the handler in place; `None` where the system does not let us.
fn install() -> Option<PreviousHandler> {
    // SAFETY: sysconf reads a constant of the system.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    let mut before = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: an action of zeros is a whole one: no handler, no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_bus_error;
    action.sa_sigaction = handler as usize;
    // On the stack that Rust gives each thread for signals, as its own handler of stack overflows is.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: both are whole actions or room for one, and the handler keeps to what a handler may do.
    let done = unsafe { libc::sigaction(libc::SIGBUS, &action, before.as_mut_ptr()) };
    // SAFETY: sigaction has filled it in when it answers 0.
    (done == 0).then(|| PreviousHandler { action: unsafe { before.assume_init() }, page })
}

/// Calls nothing but mmap, sigaction and raise, and none of Rust's that could take a lock or memory.
extern "C" fn on_bus_error(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO what it knows of the signal.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let is_fault = code > 0;
    if !(is_fault && map_zeros(address)) {
        forward_signal(signal, is_fault);
    }
}

/// Puts zeros in the place of all pages from the one at `address` to the end of its map.
fn map_zeros(address: usize) -> bool {
    let Some(Some(PreviousHandler { page, .. })) = PREVIOUS.get() else { return false };
    let found = SLOTS.iter().find_map(|place| Some((place, place.end_around(address)?)));
    let Some((place, end)) = found else { return false };
    let first = address - address % page;
    // Before the pages: whoever reads a zero finds the note.
    place.has_zeroed_pages.store(true, Ordering::SeqCst);
    let (protection, flags) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED);
    // SAFETY: the range lies within a map of ours, which is dropped after its guard, so that nothing else is
    // there; it was readable and read-only before, and is so afterwards.
    let mapped =
        unsafe { libc::mmap(ptr::with_exposed_provenance_mut(first), end - first, protection, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

/// Gives a fault that is not ours to what was there before: the read happens again, and faults again. A signal that
/// someone sent ends the process, as it does without a handler.
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
