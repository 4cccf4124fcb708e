# Completion of `moe` in bash 3.2 and later. Python returns the text after the last word break (= and : are breaks),
# with a space after a complete word.
_moe() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("$line")
    done < <(_MOE_COMPLETE=bash _MOE_BREAKS="$COMP_WORDBREAKS" "${1/#\~/$HOME}" "${COMP_LINE:0:COMP_POINT}" 2> /dev/null)
}
complete -o nospace -F _moe moe moe-cli
