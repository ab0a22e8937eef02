//! Cases of the official test suite that turn out otherwise here, each with its reason.

/// Cases of one file: the group and the test in it, or an empty test where the whole schema is refused.
pub struct Exception {
    pub reason: &'static str,
    pub file: &'static str,
    pub cases: &'static [(&'static str, &'static str)],
}

const UNSUPPORTED: &str = "the schema has a keyword that is refused by name";
const ENFORCED: &str = "formats are enforced, where the draft makes them annotations unless asked";
const UNKNOWN_FORMAT: &str = "these formats are refused by name";
const OVERLAP: &str = "alternatives of oneOf are refused unless they can be seen to be disjoint";
const PATTERNS: &str = "patterns of property names are refused unless they can be seen to be disjoint";
const REFERENCE: &str = "only plain references into the same schema are read";
const COMPLEX: &str = "the multiples of such a number are too complex an expression";

pub const EXCEPTIONS: &[Exception] = &[
    Exception {
        reason: UNSUPPORTED,
        file: "additionalProperties",
        cases: &[
            ("additionalProperties with propertyNames", ""),
            ("dependentSchemas with additionalProperties", ""),
        ],
    },
    Exception {
        reason: ENFORCED,
        file: "format",
        cases: &[
            ("email format", "invalid email string is only an annotation by default"),
            ("ipv4 format", "invalid ipv4 string is only an annotation by default"),
            ("ipv6 format", "invalid ipv6 string is only an annotation by default"),
            ("hostname format", "invalid hostname string is only an annotation by default"),
            ("date format", "invalid date string is only an annotation by default"),
            ("date-time format", "invalid date-time string is only an annotation by default"),
            ("time format", "invalid time string is only an annotation by default"),
            ("uri format", "invalid uri string is only an annotation by default"),
            ("uuid format", "invalid uuid string is only an annotation by default"),
            ("duration format", "invalid duration string is only an annotation by default"),
        ],
    },
    Exception {
        reason: UNKNOWN_FORMAT,
        file: "format",
        cases: &[
            ("idn-email format", ""),
            ("regex format", ""),
            ("idn-hostname format", ""),
            ("json-pointer format", ""),
            ("relative-json-pointer format", ""),
            ("iri format", ""),
            ("iri-reference format", ""),
            ("uri-reference format", ""),
            ("uri-template format", ""),
        ],
    },
    Exception { reason: COMPLEX, file: "multipleOf", cases: &[("float division = inf", "")] },
    Exception {
        reason: OVERLAP,
        file: "oneOf",
        cases: &[
            ("oneOf", ""),
            ("oneOf with base schema", ""),
            ("oneOf with boolean schemas, all true", ""),
            ("oneOf with boolean schemas, more than one true", ""),
            ("oneOf complex types", ""),
            ("oneOf with empty schema", ""),
            ("oneOf with required", ""),
            ("oneOf with missing optional property", ""),
        ],
    },
    Exception {
        reason: PATTERNS,
        file: "patternProperties",
        cases: &[
            ("multiple simultaneous patternProperties are validated", ""),
            ("regexes are not anchored by default and are case sensitive", ""),
            ("patternProperties with boolean schemas", ""),
        ],
    },
    Exception {
        reason: REFERENCE,
        file: "ref",
        cases: &[
            ("escaped pointer ref", ""),
            ("remote ref, containing refs itself", ""),
            ("Recursive references between schemas", ""),
            ("refs with quote", ""),
            ("refs with relative uris and defs", ""),
            ("relative refs with absolute uris and defs", ""),
            ("$id must be resolved against nearest parent, not just immediate parent", ""),
            ("order of evaluation: $id and $ref", ""),
            ("order of evaluation: $id and $anchor and $ref", ""),
            ("order of evaluation: $id and $ref on nested schema", ""),
            ("simple URN base URI with $ref via the URN", ""),
            ("URN base URI with URN and JSON pointer ref", ""),
            ("URN base URI with URN and anchor ref", ""),
            ("URN ref with nested pointer ref", ""),
            ("ref to if", ""),
            ("ref to then", ""),
            ("ref to else", ""),
            ("ref with absolute-path-reference", ""),
        ],
    },
    Exception {
        reason: UNSUPPORTED,
        file: "ref",
        cases: &[("ref creates new scope when adjacent to keywords", "")],
    },
];
