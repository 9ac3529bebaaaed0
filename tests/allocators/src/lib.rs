//! Nothing but tests: memory through many lives, with every allocator. A package of its own because some of those are C.
