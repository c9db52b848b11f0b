"""`bcquant verify`: does an export compute what its source computes?"""
