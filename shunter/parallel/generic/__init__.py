"""Any module over ranks: weights in parts, products in parts, and what is proven before it is used."""
