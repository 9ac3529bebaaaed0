//! The annotated function, read just far enough to be wrapped.

use crate::Mistakes;
use proc_macro2::Group;
use syn::parse::{Parse, ParseStream};
use syn::{Attribute, Error, FnArg, Signature, Token, Visibility};

/// A function whose body stays one group of tokens: a body with a mistake in it, or one that is being typed, reaches the
/// compiler as it was written.
pub(crate) struct Entry {
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) sig: Signature,
    pub(crate) body: Group,
}

impl Entry {
    /// Whether this is, by its name, the entry point of a program.
    fn is_main(&self) -> bool {
        self.sig.ident == "main"
    }

    /// Whether this is a `main` whose signature the compiler would refuse once more.
    pub(crate) fn is_impossible_main(&self) -> bool {
        self.is_main() && (self.is_generic() || !self.sig.inputs.is_empty())
    }

    /// Whether the function can be called with plain arguments, which a method cannot.
    pub(crate) fn is_free(&self) -> bool {
        self.sig.receiver().is_none()
    }

    /// Reports what cannot be run as a service.
    pub(crate) fn check(&self, mistakes: &mut Mistakes) {
        let sig = &self.sig;
        if sig.asyncness.is_none() {
            mistakes.push(Error::new_spanned(
                sig.fn_token,
                "the `async` keyword is missing: `#[crac::main]` runs an async function\nhint: write `async fn`",
            ));
        }
        if !sig.generics.params.is_empty() {
            mistakes.push(Error::new_spanned(
                &sig.generics.params,
                "`#[crac::main]` cannot run a generic function\nhint: call the generic function from a plain one",
            ));
        }
        if let Some(clause) = &sig.generics.where_clause {
            mistakes.push(Error::new_spanned(clause, "`#[crac::main]` cannot run a function with a `where` clause"));
        }
        match sig.inputs.first() {
            Some(_) if self.is_main() => mistakes.push(Error::new_spanned(
                &sig.inputs,
                "the `main` function cannot have arguments\nhint: the command line is in `std::env::args()`",
            )),
            Some(FnArg::Receiver(receiver)) => mistakes.push(Error::new_spanned(
                receiver,
                "`#[crac::main]` cannot run a method\nhint: call the method from a free function",
            )),
            Some(FnArg::Typed(_)) | None => {}
        }
    }

    fn is_generic(&self) -> bool {
        !self.sig.generics.params.is_empty() || self.sig.generics.where_clause.is_some()
    }
}

impl Parse for Entry {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let attrs = input.call(Attribute::parse_outer)?;
        let vis = input.parse()?;
        let not_a_function = |error: Error| Error::new(error.span(), "`#[crac::main]` goes on an async function");
        let sig = input.parse().map_err(not_a_function)?;
        if input.peek(Token![;]) {
            return Err(input.error("`#[crac::main]` needs a function with a body"));
        }
        Ok(Self { attrs, vis, sig, body: input.parse()? })
    }
}
