//! A template's syntax tree.

use super::text::Text;

#[derive(Debug)]
pub(super) struct Stmt {
    pub line: usize,
    pub kind: StmtKind,
}

#[derive(Debug)]
pub(super) enum StmtKind {
    Data(Text),
    Emit(Expr),
    For(Box<For>),
    If {
        branches: Vec<(Expr, Vec<Stmt>)>,
        otherwise: Vec<Stmt>,
    },
    Set {
        target: Target,
        value: Expr,
    },
    SetBlock {
        target: Target,
        filters: Vec<NamedCall>,
        body: Vec<Stmt>,
    },
    With {
        values: Vec<(Target, Expr)>,
        body: Vec<Stmt>,
    },
    FilterBlock {
        filters: Vec<NamedCall>,
        body: Vec<Stmt>,
    },
    Macro(Macro),
    CallBlock {
        callee: Expr,
        args: Args,
        caller: Macro,
    },
    /// `generation`: a block with variables of its own.
    Scope(Vec<Stmt>),
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) struct For {
    pub target: Target,
    pub items: Expr,
    pub filter: Option<Expr>,
    pub recursive: bool,
    pub body: Vec<Stmt>,
    pub otherwise: Vec<Stmt>,
}

#[derive(Debug)]
pub(super) enum Target {
    Name(String),
    /// An attribute of a namespace.
    Attribute(String, String),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(super) struct Macro {
    pub name: String,
    pub params: Vec<(String, Option<Expr>)>,
    pub body: Vec<Stmt>,
    /// Which of the names that take what is left over of a call its body uses.
    pub uses_varargs: bool,
    pub uses_kwargs: bool,
    pub uses_caller: bool,
}

/// A filter or a test with its arguments.
#[derive(Debug)]
pub(super) struct NamedCall {
    pub name: String,
    pub args: Args,
}

#[derive(Debug, Default)]
pub(super) struct Args {
    pub positional: Vec<Expr>,
    pub named: Vec<(String, Expr)>,
    pub list: Option<Box<Expr>>,
    pub dict: Option<Box<Expr>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Debug)]
pub(super) enum Expr {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Text),
    Name(String),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    Arithmetic(Arithmetic, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    If { test: Box<Expr>, then: Box<Expr>, otherwise: Option<Box<Expr>> },
    Attribute(Box<Expr>, String),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Box<Args>),
    Filter(Box<Expr>, Box<NamedCall>),
    Test(Box<Expr>, Box<NamedCall>),
}
