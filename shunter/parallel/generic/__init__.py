"""Any module over ranks: weights in parts, products computed in parts, and what is proven before it is used."""
