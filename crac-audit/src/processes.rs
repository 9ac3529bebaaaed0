//! Children and tracers.

use std::{collections::BTreeSet, fs};

use crac_core::{Obstacle, ObstacleKind};
use crac_sys::proc::{MappingName, ProcessStat, ProcessStatus, decimal_name};

use crate::{AuditError, linux::unreadable, threads::Thread};

/// The threads of this process.
pub(crate) fn threads() -> Result<Vec<Thread>, AuditError> {
    let directory = "/proc/self/task";
    let mut threads = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable(directory))? {
        let entry = entry.map_err(unreadable(directory))?;
        let Some(id) = decimal_name(entry.file_name().as_encoded_bytes()) else { continue };
        // A thread may end meanwhile.
        let Ok(name) = fs::read(entry.path().join("comm")) else { continue };
        threads.push(Thread::new(id, String::from_utf8_lossy(name.trim_ascii_end()).into_owned()));
    }
    threads.sort_unstable_by_key(|thread| thread.id);
    Ok(threads)
}

/// The children of all threads of this process.
pub(crate) fn children(threads: &[Thread]) -> Vec<Obstacle> {
    let mut listed = BTreeSet::new();
    let mut is_listed = true;
    for thread in threads {
        // CONFIG_PROC_CHILDREN.
        match fs::read(format!("/proc/self/task/{}/children", thread.id)) {
            Ok(text) => listed.extend(text.split(u8::is_ascii_whitespace).filter_map(decimal_name)),
            // Unless the thread has just ended.
            Err(_) => is_listed &= !fs::exists(format!("/proc/self/task/{}", thread.id)).unwrap_or(true),
        }
    }
    let children = if is_listed { listed } else { children_by_parent() };
    children
        .into_iter()
        .filter_map(|pid| {
            let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
            let stat = ProcessStat::parse(&text).ok()?;
            let ended = if stat.state == b'Z' { ", which has ended and was not waited for" } else { "" };
            let owner = format!("the program {}{ended}", String::from_utf8_lossy(stat.name));
            // The words of the native engine, which finds the same but no name.
            Some(Obstacle::new(ObstacleKind::Child, format!("process {pid}")).owned_by(owner))
        })
        .collect()
}

fn children_by_parent() -> BTreeSet<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    entries
        .flatten()
        .filter_map(|entry| decimal_name(entry.file_name().as_encoded_bytes()))
        .filter(|pid| {
            let text = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
            ProcessStat::parse(&text).is_ok_and(|stat| stat.parent == own)
        })
        .collect()
}

/// Whoever traces this process.
pub(crate) fn tracer() -> Result<Option<Obstacle>, AuditError> {
    let path = "/proc/self/status";
    let text = fs::read(path).map_err(unreadable(path))?;
    let status = ProcessStatus::parse(&text).map_err(|_| AuditError::Malformed { path: path.into() })?;
    Ok((status.tracer != 0).then(|| {
        let name = fs::read_to_string(format!("/proc/{}/comm", status.tracer)).unwrap_or_default();
        // The words of the native engine, as above.
        let obstacle = Obstacle::new(ObstacleKind::Tracer, format!("process {} traces this one", status.tracer));
        if name.is_empty() { obstacle } else { obstacle.owned_by(format!("the program {}", name.trim_end())) }
    }))
}

/// A uprobe or its remains.
pub(crate) fn breakpoints() -> Result<Option<Obstacle>, AuditError> {
    let path = "/proc/self/maps";
    let text = fs::read(path).map_err(unreadable(path))?;
    for mapping in crac_sys::proc::Mapping::all(&text) {
        let mapping = mapping.map_err(|_| AuditError::Malformed { path: path.into() })?;
        if mapping.name() == MappingName::Special(b"uprobes") {
            let subject = format!("mapping {:#x}-{:#x}, [uprobes]", mapping.start, mapping.end);
            return Ok(Some(Obstacle::new(ObstacleKind::Breakpoint, subject)));
        }
    }
    Ok(None)
}
