//! From what was parsed to the synchronous function.

use crate::config::{Config, Flavor};
use crate::entry::Entry;
use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote};
use std::time::Duration;
use syn::{FnArg, Safety, Signature};

/// The synchronous function that runs `entry`'s body:
///
/// ```text
/// fn main() -> RET {
///     async fn main() -> RET { BODY }
///     ::crac::__private::main(::crac::__private::MainConfig { .. }, main())
/// }
/// ```
///
/// The body stays the body of an `async fn` with the declared return type, so the compiler's messages about it point where
/// they would without the attribute, `-> !` and `-> impl Trait` included. The inner function has the outer one's name: any
/// other could hide an item that the body means.
pub(crate) fn function(entry: &Entry, config: &Config) -> TokenStream {
    let Entry { attrs, vis, sig, body } = entry;
    let inner = async_signature(sig);
    // Both were reported; what follows only keeps the compiler's other messages down to those that matter.
    if !entry.is_free() {
        return quote!(#(#attrs)* #vis #sig #body);
    }
    if entry.is_impossible_main() {
        let output = &sig.output;
        return quote! {
            #(#attrs)* #vis fn main() #output {
                #[allow(dead_code, clippy::all)]
                #inner #body
                ::core::unreachable!()
            }
        };
    }
    let arguments = arguments(sig);
    let outer = sync_signature(sig, &arguments);
    let private = config.crate_path.as_ref().map_or_else(|| quote!(::crac), ToTokens::to_token_stream);
    let private = quote!(#private::__private);
    let name = &sig.ident;
    let fields = fields(config);
    quote! {
        #(#attrs)* #vis #outer {
            #[allow(clippy::unused_async)]
            #inner #body
            #[allow(clippy::needless_update)]
            let config = #private::MainConfig {
                package: ::core::option_env!("CARGO_PKG_NAME"),
                version: ::core::option_env!("CARGO_PKG_VERSION"),
                #(#fields,)*
                ..::core::default::Default::default()
            };
            #private::main(config, #name(#(#arguments),*))
        }
    }
}

/// The signature around the body. What only the caller sees - `unsafe`, the ABI - stays outside.
fn async_signature(sig: &Signature) -> Signature {
    Signature { constness: None, asyncness: Some(Default::default()), safety: Safety::Default, abi: None, ..sig.clone() }
}

/// The signature callers see. Patterns are for the body; here each argument has a plain name.
fn sync_signature(sig: &Signature, arguments: &[Ident]) -> Signature {
    let mut sig = Signature { asyncness: None, ..sig.clone() };
    for (input, name) in sig.inputs.iter_mut().zip(arguments) {
        if let FnArg::Typed(input) = input {
            *input.pat = syn::parse_quote!(#name);
        }
    }
    sig
}

fn arguments(sig: &Signature) -> Vec<Ident> {
    (0..sig.inputs.len()).map(|index| format_ident!("argument{index}", span = Span::mixed_site())).collect()
}

/// The fields that were given, as `field: Some(value)`.
fn fields(config: &Config) -> Vec<TokenStream> {
    let texts = [
        ("name", &config.name),
        ("image", &config.image),
        ("engine", &config.engine),
        ("policy", &config.policy),
        ("checkpoint_signal", &config.checkpoint_signal),
        ("clock", &config.clock),
        ("downtime", &config.downtime),
        ("image_form", &config.image_form),
    ];
    let deadlines = [
        ("hook_deadline", config.hook_deadline),
        ("drain_deadline", config.drain_deadline),
        ("hold_deadline", config.hold_deadline),
        ("checkpoint_deadline", config.checkpoint_deadline),
        ("restore_deadline", config.restore_deadline),
    ];
    let texts = texts.into_iter().filter_map(|(name, value)| field(name, value.as_deref()));
    let deadlines = deadlines.into_iter().filter_map(|(name, value)| field(name, value.map(duration)));
    let others = [
        field("flavor", config.flavor.map(Flavor::as_str)),
        field("worker_threads", config.worker_threads),
        field("control", config.control),
    ];
    texts.chain(deadlines).chain(others.into_iter().flatten()).collect()
}

fn field(name: &str, value: Option<impl ToTokens>) -> Option<TokenStream> {
    let name = Ident::new(name, Span::mixed_site());
    value.map(|value| quote!(#name: ::core::option::Option::Some(#value)))
}

fn duration(value: Duration) -> TokenStream {
    // Read from a `u64` of milliseconds, so nothing is cut off.
    let millis = value.as_millis() as u64;
    quote!(::core::time::Duration::from_millis(#millis))
}
