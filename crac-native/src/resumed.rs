//! The first steps of a restored life, on the thread that made the capture.
#![expect(unsafe_code, reason = "reads what the stub left at an agreed address, and unmaps the stub")]

use std::{
    ffi::OsString,
    fmt::Write,
    ops::Range,
    os::{
        fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStringExt,
    },
    ptr, slice,
    sync::{Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use crac_core::{CaptureRequest, ImageId, InstanceId, Restoration, Stage};
use crac_sys::{Errno, fs, mem, process, signal};

use crate::{
    capture::HEADER_AT,
    clock::{
        layer,
        offset::{self, Offset, Readings},
        shim,
    },
    confined, freeze,
    layout::{Handover, Header, RunRecord, Section, SettingRecord, Step, ThreadRecord, clock, downtime, trial},
    madvise, owners, prefetch, settings,
    text::FixedText,
};

/// Waits for the other threads, lets them go on, and reports. `mask` and `stack` are the capturing thread's own signal mask and
/// alternate signal stack.
///
/// Until the threads go on nothing is allocated: one of them may have been stopped inside the allocator.
///
/// Gives back the addresses at which the stub still is: [`settle`] unmaps it.
pub(crate) fn take_over(
    request: &CaptureRequest<'_>,
    mask: signal::SignalSet,
    stack: &libc::stack_t,
) -> (Restoration, Range<usize>) {
    let header_at = HEADER_AT.swap(0, Ordering::SeqCst);
    let header = ptr::with_exposed_provenance::<Header>(header_at as usize);
    // SAFETY: the stub, which has just run, is mapped with the metadata at this address, the one it was made for.
    let header = unsafe { header.read() };
    let asleep_monotonic = continue_clocks(&header, header.handover_at);
    let handover = ptr::with_exposed_provenance::<Handover>(header.handover_at as usize);
    // SAFETY: the stub has written the record there.
    let handover = unsafe { handover.read() };
    let is_eager = handover.eager != 0;
    prefetch::note(is_eager || handover.populated != 0);
    freeze::wait_for_arrivals();
    // SAFETY: the table was checked by the stub and stays mapped until the end of this function.
    let runs = unsafe { table::<RunRecord>(header_at, header.runs) };
    let processors = confined::begin(&handover);
    let runs = if is_eager { &[] } else { runs };
    let installed = if header.trial.kind == trial::RESUME { Err(Errno::new(libc::EIO)) } else { madvise::install(runs) };
    if let Err(errno) = installed {
        // Without the table an allocator would take old bytes for zeros.
        give_up("the mappings of this process cannot be read", errno);
    }
    // SAFETY: as above.
    let settings = unsafe { table::<SettingRecord>(header_at, header.settings) };
    // SAFETY: as above.
    let threads = unsafe { table::<ThreadRecord>(header_at, header.threads) };
    settings::begin_life(settings, threads.first().map_or(0, |main| main.tid), processors);
    // SAFETY: as above.
    let held = unsafe { table::<u64>(header_at, header.owners) };
    let held = held.split(|address| *address == 0).next().unwrap_or_default();
    // SAFETY: noted at the capture of this very memory; every thread has arrived, with its id in place, and none goes on.
    unsafe { owners::rename(held, threads) };
    freeze::release_restored();
    // SAFETY: this thread's own alternate stack, as it was registered before.
    let registered = unsafe { signal::set_alternate_stack(stack) };
    debug_assert!(registered.is_ok(), "a stack that was registered can be registered again");
    // The mask was valid when it was read.
    let _ = signal::set_mask(mask);
    let restoration = describe(&header, asleep_monotonic, request);
    (restoration, header.zone_start as usize..header.zone_end as usize)
}

/// Ends the process before any other thread has gone on: nothing is allocated and no lock is taken.
fn give_up(what: &str, errno: Errno) -> ! {
    let mut line = FixedText::<160>::new();
    // The text fits; and if nobody listens there is the status.
    let _ = writeln!(line, "crac: cannot restore: resuming: {what}: errno {}", errno.number());
    // SAFETY: standard error, whatever it is; a descriptor that is closed is answered with an error.
    let _ = fs::write(unsafe { BorrowedFd::borrow_raw(2) }, line.as_bytes());
    process::exit_group(crate::layout::EXIT_FAILED)
}

/// What a restored life no longer needs, and is in no hurry to give back.
#[derive(Debug)]
struct Leftovers {
    stub_at: Range<usize>,
    _bytes: [Vec<u8>; 2],
    _descriptors: Vec<RawFd>,
}

static LEFTOVERS: Mutex<Option<Leftovers>> = Mutex::new(None);

/// Keeps what the capture had allocated, and the mappings of the stub, until [`settle`]: giving memory back writes to pages that
/// have to be fetched first, and the first answer of the restored life would wait for it.
pub(crate) fn keep_for_later(stub_at: Range<usize>, bytes: [Vec<u8>; 2], descriptors: Vec<RawFd>) {
    let leftovers = Leftovers { stub_at, _bytes: bytes, _descriptors: descriptors };
    *LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner) = Some(leftovers);
}

/// Gives back what was kept, if there is something, and does what the first answer has not waited for.
pub(crate) fn settle() {
    settings::settle();
    let Some(leftovers) = LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    // SAFETY: every thread has left the stub, and what it left was copied before this record was made, which is used up once.
    let unmapped = unsafe { mem::unmap(leftovers.stub_at.start, leftovers.stub_at.len()) };
    debug_assert!(unmapped.is_ok(), "the stub's own mappings can be unmapped");
}

/// Sets the offsets of the clocks, before any thread reads one. Returns how far the service's monotonic clock has moved.
fn continue_clocks(header: &Header, handover_at: u64) -> Duration {
    let handover = ptr::with_exposed_provenance::<Handover>(handover_at as usize);
    // SAFETY: the stub has written the record there.
    let handover = unsafe { handover.read() };
    let passed_ns = match header.downtime {
        downtime::ELAPSED => handover.realtime_ns.saturating_sub(header.captured_realtime_ns),
        _ => 0,
    };
    match header.clock {
        clock::PROXY => {
            if handover.vdso_at != 0 {
                // SAFETY: an image with these clocks has a proxy; the stub has put the vdso of this kernel there.
                unsafe { layer::follow(handover.vdso_at as usize, handover.vdso_bytes as usize) };
            }
            let stood = Readings {
                monotonic_ns: header.captured_monotonic_ns,
                raw_ns: header.captured_raw_ns,
                boottime_ns: header.captured_boottime_ns,
            };
            // From the stub's entry on: the timers it has armed since must not be due before their moment. And from the last tick on
            // if that is earlier: the coarse clock, which shows it, must not fall behind what it showed before.
            let tick_ns = crate::facts::clock_ns(libc::CLOCK_MONOTONIC_COARSE);
            let now = shim::kernel().earlier(handover.monotonic_ns.min(tick_ns));
            shim::set_offsets(offset::offsets(stood, now, passed_ns));
            Duration::from_nanos(passed_ns)
        }
        clock::TIME_NAMESPACE => {
            shim::set_offsets([Offset::default(); 3]);
            Duration::from_nanos(passed_ns)
        }
        _ => Duration::from_nanos(handover.monotonic_ns.saturating_sub(header.captured_monotonic_ns)),
    }
}

fn describe(header: &Header, asleep_monotonic: Duration, request: &CaptureRequest<'_>) -> Restoration {
    let handover_at = ptr::with_exposed_provenance::<Handover>(header.handover_at as usize);
    // SAFETY: the stub has written the record there.
    let handover = unsafe { handover_at.read() };
    let strings = ptr::with_exposed_provenance::<u8>(header.handover_at as usize + size_of::<Handover>());
    // SAFETY: as many bytes as the stub has written behind the record.
    let strings = unsafe { slice::from_raw_parts(strings, handover.strings_bytes as usize) };
    let mut strings = strings.split(|byte| *byte == 0);
    let mut args: Vec<OsString> =
        strings.by_ref().take(handover.arguments as usize).map(|argument| OsString::from_vec(argument.to_vec())).collect();
    // `./IMAGE -- ARGS...` and `crac restore IMAGE -- ARGS...` say the same.
    if args.get(1).is_some_and(|argument| argument == "--") {
        args.remove(1);
    }
    let env = strings
        .take(handover.variables as usize)
        .filter_map(|variable| {
            let at = variable.iter().skip(1).position(|byte| *byte == b'=')? + 1;
            let (name, value) = variable.split_at(at);
            Some((OsString::from_vec(name.to_vec()), OsString::from_vec(value[1..].to_vec())))
        })
        .collect();
    let mut instance_id = [0; 16];
    // The kernel's generator does not fail once it is seeded, and this process did not come up before it was.
    let _ = process::random(&mut instance_id);
    let mut restoration = Restoration::new(ImageId(header.image_id), InstanceId(instance_id), request.metadata.generation + 1);
    restoration.args = if args.len() > 1 { args } else { Vec::new() };
    restoration.env = env;
    let listeners = handover.listeners.into_iter().filter(|number| *number > 0);
    // SAFETY: the stub has left these descriptors open for this life, and nobody else knows of them.
    restoration.listeners = listeners.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect::<Vec<_>>().into();
    restoration.asleep_wall = Duration::from_nanos(handover.realtime_ns.saturating_sub(header.captured_realtime_ns));
    restoration.asleep_monotonic = asleep_monotonic;
    let mut before = handover.monotonic_ns;
    for step in Step::ALL {
        let at = handover.steps_ns.get(*step as usize).copied().unwrap_or(0);
        if at >= before {
            let took = Duration::from_nanos(at - before);
            restoration.stages.push(Stage { name: step.name().to_owned(), took });
            before = at;
        }
    }
    let now = crate::facts::clock_ns(libc::CLOCK_MONOTONIC);
    restoration.stages.push(Stage { name: "resume".to_owned(), took: Duration::from_nanos(now.saturating_sub(before)) });
    restoration
}

/// # Safety
///
/// The metadata is mapped at `metadata_at`, and the section is one of its tables of `T`.
unsafe fn table<'a, T>(metadata_at: u64, section: Section) -> &'a [T] {
    let start = ptr::with_exposed_provenance::<T>((metadata_at + section.offset) as usize);
    // SAFETY: the caller's promise.
    unsafe { slice::from_raw_parts(start, section.bytes as usize / size_of::<T>()) }
}
