//! What all programs have in common: they look, are captured, and look again in every life that follows.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use crac_core::{CaptureRequest, Captured, Engine, EngineError, ImageId, ImageMetadata, Mode, Policy, Restoration};
use crac_criu::CriuEngine;
use crac_native::NativeEngine;

use crate::{descriptors, locks, memory, objects, process, sockets, threads};

/// A program: sets something up and hands a look at it to [`Lives::each`].
pub(crate) type Program = fn(Lives);

/// The programs of all areas, by the name of their feature.
pub(crate) fn programs() -> impl Iterator<Item = &'static (&'static str, Program)> {
    [
        memory::PROGRAMS,
        objects::PROGRAMS,
        threads::PROGRAMS,
        locks::PROGRAMS,
        descriptors::PROGRAMS,
        sockets::PROGRAMS,
        process::PROGRAMS,
    ]
    .into_iter()
    .flatten()
}

/// Plays the program of that name.
pub(crate) fn run(name: &str) {
    // A thread that panics ends the life, rather than to be waited for.
    let complain = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        complain(panic);
        std::process::exit(101)
    }));
    // As a restore on a host does whose clocks stand elsewhere, but from the start: whatever misses the shift misfires.
    if let Ok(by_s) = std::env::var("CRAC_TEST_SHIFT") {
        crac_native::shift_clocks(by_s.parse().unwrap()).unwrap();
    }
    let (_, program) = programs().find(|(known, _)| *known == name).expect("a program of that name");
    let directory = PathBuf::from(std::env::var_os("CRAC_TEST_DIRECTORY").unwrap());
    // CRIU takes one image and restores it: the other ways are the native engine's.
    let (engine, copies): (Box<dyn Engine>, bool) = match std::env::var_os("CRAC_TEST_ENGINE") {
        Some(criu) => (Box::new(CriuEngine::new().with_program(criu)), false),
        None => (Box::new(NativeEngine::new()), true),
    };
    program(Lives { engine, policy: Policy::new(), directory, copies, last: None });
}

/// What is to be done in a life, by the first argument it was started with.
const END: &str = "end";
const AGAIN: &str = "again";
const BECOME: &str = "become";

/// Which life this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// Nothing has happened yet.
    First,
    /// The first life, after a copy of it was saved.
    Copied,
    /// The first life, after a refusal.
    Refused,
    /// A restored one.
    Restored,
}

/// The lives of a program; see [`Lives::each`].
pub(crate) struct Lives {
    engine: Box<dyn Engine>,
    policy: Policy,
    directory: PathBuf,
    copies: bool,
    last: Option<fn()>,
}

impl Lives {
    /// Captures under this policy.
    pub(crate) fn policy(mut self, policy: &str) -> Self {
        self.policy = policy.parse().unwrap();
        self
    }

    /// Where images go is somewhere else for the program now.
    pub(crate) fn in_directory(mut self, directory: &str) -> Self {
        self.directory = directory.into();
        self
    }

    /// The program cannot be saved while it goes on.
    pub(crate) fn without_copies(mut self) -> Self {
        self.copies = false;
        self
    }

    /// The last thing a restored life does. It is expected to die of it.
    pub(crate) fn at_last(mut self, last: fn()) -> Self {
        self.last = Some(last);
        self
    }

    /// Calls `look` in every life, and ends the process after the last.
    ///
    /// ```text
    /// start ─► look ─► continue: COPY ─► look ─► exit: FIRST
    /// FIRST ─► look ─► end          FIRST ─► look ─► exit: SECOND          COPY ─► look ─► end
    /// SECOND ─► look ─► become: THIRD ─► look ─► end
    /// ```
    pub(crate) fn each(self, mut look: impl FnMut(Life)) -> ! {
        look(Life::First);
        if self.copies && self.capture("copy", Mode::Continue, 0, &mut look).is_none() {
            look(Life::Copied);
        }
        let mut image = "first";
        let mut generation = 0;
        let mut mode = Mode::Exit;
        loop {
            let Some(life) = self.capture(image, mode, generation, &mut look) else { panic!("the original goes on") };
            generation = life.generation;
            look(Life::Restored);
            match life.args.get(1).and_then(|argument| argument.to_str()) {
                Some(AGAIN) => (image, mode) = ("second", Mode::Exit),
                Some(BECOME) => (image, mode) = ("third", Mode::Become),
                Some(END) | None => break,
                Some(other) => panic!("nobody is told to {other}"),
            }
        }
        self.end()
    }

    /// The end of a restored life.
    fn end(&self) -> ! {
        if let Some(last) = self.last {
            last();
        }
        end("all as it was")
    }

    /// Captures; nothing is returned in the original.
    fn capture(&self, image: &str, mode: Mode, generation: u64, look: &mut impl FnMut(Life)) -> Option<Restoration> {
        let path = self.directory.join(image);
        let metadata = ImageMetadata::new("programs", ImageId([generation as u8; 16]), generation, None);
        match self.engine.capture(CaptureRequest::new(path.clone(), mode, metadata, &self.policy)) {
            Ok(Captured::Restored(life)) => {
                self.engine.spread();
                if life.args.get(1).is_some_and(|argument| argument == END) && image == "copy" {
                    look(Life::Restored);
                    self.end();
                }
                Some(life)
            }
            Ok(Captured::Original(_)) => None,
            Ok(Captured::Underway(mut copy)) => match copy.wait(crac_testing::PATIENCE) {
                Some(Ok(_)) => None,
                Some(Err(error)) => stopped(error, &path, look),
                None => panic!("the copy does not end"),
            },
            Err(error) => stopped(error, &path, look),
        }
    }
}

/// Says why there is no image, once the original was looked at.
fn stopped(error: EngineError, path: &Path, look: &mut impl FnMut(Life)) -> ! {
    assert!(!path.exists(), "a refused capture leaves nothing");
    look(Life::Refused);
    match error {
        EngineError::Refused(obstacles) => obstacles.iter().for_each(|obstacle| println!("obstacle {obstacle}")),
        other => println!("failed {other}"),
    }
    end("refused")
}

/// Says so and ends, without the destructors of what was set up.
pub(crate) fn end(word: &str) -> ! {
    println!("{word}");
    std::io::stdout().flush().unwrap();
    std::process::exit(0)
}

/// The feature does not exist here, or not for this user.
pub(crate) fn not_here(reason: &str) -> ! {
    end(&format!("not here: {reason}"))
}
