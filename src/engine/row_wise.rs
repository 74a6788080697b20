//! Which expressions are functions of one row, so that the same row always gives the same value.

use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, Volatility};

/// What makes an expression no function of one row, as a noun for a message; `None` if it is one.
///
/// # Errors
/// None in practice: those of walking through the expression.
pub(crate) fn not_row_wise(expression: &Expr) -> Result<Option<String>> {
    let mut found = None;
    expression.apply(|part| {
        found = match part {
            Expr::ScalarFunction(ScalarFunction { func, .. })
                if func.signature().volatility != Volatility::Immutable =>
            {
                Some(format!("`{}`, which is not immutable", func.name()))
            }
            Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) => {
                Some("a subquery in an expression".into())
            }
            Expr::AggregateFunction(_) => Some("an aggregate".into()),
            Expr::WindowFunction(_) => Some("a window function".into()),
            Expr::Placeholder(parameter) => Some(format!("the parameter {}", parameter.id)),
            _ => None,
        };
        Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}
