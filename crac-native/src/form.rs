//! What an image is: a program, or data for one.

use std::{fmt, str::FromStr};

use crate::UnknownSetting;

/// Whether an image is a program itself.
///
/// Every image can be restored by a program that may be executed, such as the `crac` command. A data-only one holds no code that is
/// in a file: programs and libraries are mapped from theirs, which must be there with the same code. It is not executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ImageForm {
    /// [`DataOnly`](ImageForm::DataOnly) where the image goes to a file system that is mounted `noexec`, else
    /// [`Program`](ImageForm::Program).
    #[default]
    Auto,
    /// A program: executing it is the restore. It brings the service's program and libraries along.
    Program,
    /// Data alone, for hosts where only what was installed may be executed (`fapolicyd`, `noexec` mounts).
    DataOnly,
}

impl ImageForm {
    /// The word for it in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            ImageForm::Auto => "auto",
            ImageForm::Program => "program",
            ImageForm::DataOnly => "data-only",
        }
    }
}

impl fmt::Display for ImageForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for ImageForm {
    type Err = UnknownSetting;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [ImageForm::Auto, ImageForm::Program, ImageForm::DataOnly];
        let unknown = || UnknownSetting::new(text, "`auto`, `program` or `data-only`");
        all.into_iter().find(|form| form.as_str() == text).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_as_they_are_written() {
        for form in [ImageForm::Auto, ImageForm::Program, ImageForm::DataOnly] {
            assert_eq!(form.to_string().parse(), Ok(form));
        }
        assert_eq!("elf".parse::<ImageForm>().unwrap_err().to_string(), "`elf` is not `auto`, `program` or `data-only`");
    }
}
