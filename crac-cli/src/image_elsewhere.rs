//! Twin of `image.rs` for systems and processors without the native engine: nothing fits.

use std::{
    ffi::OsString,
    fs::File,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{demands::Demands, exit::Exit};

/// Why an image is not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Reason {
    #[serde(skip)]
    pub(crate) exit: Exit,
    pub(crate) what: String,
}

/// An image that fits: there is none.
#[derive(Debug)]
pub(crate) enum Fitting {}

impl Fitting {
    pub(crate) fn verified(self) -> Result<Self, Vec<Reason>> {
        match self {}
    }

    pub(crate) fn exec(self, _arguments: Vec<OsString>, _environment: Vec<(OsString, OsString)>) -> Reason {
        match self {}
    }
}

/// What an image says about itself: nothing can be read.
#[derive(Debug, Serialize)]
pub(crate) enum Inspection {}

impl Inspection {
    pub(crate) fn print(&self, _maps: bool) {
        match *self {}
    }

    pub(crate) fn verified(&self) -> String {
        match *self {}
    }
}

pub(crate) fn open(_path: &Path, _program: Option<&Path>, _demands: &Demands) -> Result<Fitting, Vec<Reason>> {
    Err(vec![reason()])
}

pub(crate) fn inspect(_path: &Path, _identities: &[PathBuf]) -> Result<Inspection, Reason> {
    Err(reason())
}

pub(crate) fn verify(_path: &Path, _demands: &Demands) -> Result<Inspection, Reason> {
    Err(reason())
}

pub(crate) fn open_plain(_path: &Path, _identities: &[PathBuf]) -> Result<File, Reason> {
    Err(reason())
}

fn reason() -> Reason {
    let what =
        format!("images of the native engine are for x86_64 Linux, not {} on {}", std::env::consts::OS, std::env::consts::ARCH);
    Reason { exit: Exit::StartCold, what }
}
